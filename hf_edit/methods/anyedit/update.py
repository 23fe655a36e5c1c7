"""Stage 2 in closed form: the targets of all edits become one update per layer (AnyEdit, eq. 19 and 20)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_edit.methods.anyedit.config import AnyEditConfig
from hf_edit.methods.anyedit.targets import Targets
from hf_edit.methods.base import KeyValues
from hf_edit.methods.beginnings import beginnings
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.prompting import Encoded
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.null_space import null_space, null_space_solve
from hf_edit.solvers.ridge import Columns, penalty
from hf_edit.solvers.support import solve_within


Solver = Callable[[EditableLinear, Columns], LowRankDelta]
"""What becomes of the columns collected for one linear."""

TOKENS_AT_ONCE = 2048  # of texts run together, padding included


def solver(config: AnyEditConfig, moment_of: Callable[[EditableLinear], Tensor], most: Mapping[str, int]) -> Solver:
    """The solve of the backend `memit` or `alphaedit`, against the second moment (d_in, d_in) of a linear's inputs.

    Args:
        most: linear name -> inputs on which memit's update may act; all of a linear that is not there.
    """

    def memit(linear: EditableLinear, columns: Columns) -> LowRankDelta:
        G = penalty(moment_of(linear), config.preservation, config.ridge)
        return solve_within(columns, G, most.get(linear.name))

    def alphaedit(linear: EditableLinear, columns: Columns) -> LowRankDelta:
        C = moment_of(linear)
        return null_space_solve(columns, null_space(C, config.null_share), config.beta * float(C.diagonal().mean()))

    return {"memit": memit, "alphaedit": alphaedit}[config.backend]


def spread_update(
    model: EditableModel,
    linears: Sequence[EditableLinear],
    encoded: Sequence[Encoded],
    targets: Sequence[Targets],
    earlier: Sequence[Encoded],
    solve: Solver,
    own_weight: float,
    earlier_weight: float,
) -> tuple[dict[str, LowRankDelta], list[dict[str, KeyValues]]]:
    """One joint update for all edits, spread over the layers in order.

    Layer i of R takes the share 1 / (R - i) of what is still missing at the last one, measured with the updates of
    the layers before it in place. Every other token of the edits' own texts is preserved, and every token of the
    texts of earlier edits.

    Args:
        linears: the edited maps, by ascending layer; the targets belong to the last.
        earlier: texts taught before.
        solve: keys, residuals and preserved keys of a linear to its update.
        own_weight: weight of the edits' own other tokens.
        earlier_weight: weight of the earlier edits' tokens.

    Returns:
        The deltas by linear name, and per edit what each linear was asked for.
    """
    last = linears[-1]
    texts = [_Text(e.ids, t.positions, t.deltas, own_weight) for e, t in zip(encoded, targets, strict=True)]
    nothing = torch.zeros(0, dtype=torch.long), torch.zeros(0, last.d_out)
    if earlier_weight:
        texts += [_Text(e.ids, *nothing, earlier_weight) for e in earlier]
    edited = {beginnings(text.ids)[place] for text in texts for place in text.positions.tolist()}
    batches = [_batch(model, group, edited) for group in _groups(texts)]
    goals: list[Tensor] = []  # Z = H0 + delta, per batch (n, d)

    deltas: dict[str, LowRankDelta] = {}
    source: list[dict[str, KeyValues]] = [{} for _ in encoded]
    for index, linear in enumerate(linears):
        columns = Columns(linear.d_out, linear.d_in)
        residuals: list[Tensor] = []
        for number, batch in enumerate(batches):
            with model.updated(deltas):
                inputs, stream = _inputs_and_stream(model, batch, linear, last)
            reached = stream[batch.keys].to(batch.deltas)
            if index == 0:
                goals.append(reached + batch.deltas)
            residual = (goals[number] - reached) / (len(linears) - index)  # (n, d)
            other = batch.weights > 0
            preserved = inputs[other].double() * batch.weights[other][:, None].sqrt()
            columns.add(inputs[batch.keys].T, residual.T, preserved.T)
            residuals.extend(residual.split(batch.counts))
        deltas[linear.name] = solve(linear, columns).to(dtype=torch.promote_types(model.dtype, torch.float32))
        for asked, target, residual in zip(source, targets, residuals, strict=False):  # earlier texts ask for nothing
            asked[linear.name] = KeyValues(target.positions, residual.float().cpu())
    return deltas, source


@dataclass(frozen=True, eq=False)
class _Text:
    """One text of the solve: what is asked at some of its tokens, and how much the others are to stay."""

    ids: tuple[int, ...]
    positions: Tensor  # (n,) ascending
    deltas: Tensor  # (n, d)
    weight: float


@dataclass(frozen=True, eq=False)
class _Batch:
    """Texts run together, padded on the right."""

    ids: Tensor  # (B, T)
    mask: Tensor  # (B, T)
    keys: Tensor  # (B, T) bool
    weights: Tensor  # (B, T) float64: of the other tokens; 0 at keys and padding
    deltas: Tensor  # (n, d), text by text
    counts: list[int]  # keys per text


def _groups(texts: Iterable[_Text]) -> list[list[_Text]]:
    """Neighbouring texts in groups of at most TOKENS_AT_ONCE tokens, or one text."""
    groups: list[list[_Text]] = []
    for text in texts:
        group = [*groups[-1], text] if groups else [text]
        if groups and len(group) * max(len(t.ids) for t in group) <= TOKENS_AT_ONCE:
            groups[-1] = group
        else:
            groups.append([text])
    return groups


def _batch(model: EditableModel, texts: Sequence[_Text], edited: Collection[int]) -> _Batch:
    """The texts, padded.

    Args:
        edited: beginnings that end in a key. A text that begins like another up to one of its keys, as a conversation
            that goes on or an earlier answer to the same question does, cannot stay as it is there.
    """
    ids, mask = model.ids([text.ids for text in texts])
    keys, moving = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for row, text in enumerate(texts):
        keys[row, text.positions.to(ids.device)] = True
        known = [beginning in edited for beginning in beginnings(text.ids)]
        moving[row, : len(known)] = torch.tensor(known, device=ids.device)
    weights = torch.tensor([text.weight for text in texts], dtype=torch.float64, device=ids.device)
    accumulate = torch.promote_types(model.dtype, torch.float32)
    return _Batch(
        ids=ids,
        mask=mask,
        keys=keys,
        weights=weights[:, None] * (mask.bool() & ~keys & ~moving),
        deltas=torch.cat([text.deltas for text in texts]).to(ids.device, accumulate),
        counts=[len(text.positions) for text in texts],
    )


def _inputs_and_stream(
    model: EditableModel, batch: _Batch, linear: EditableLinear, last: EditableLinear
) -> tuple[Tensor, Tensor]:
    """The linear's inputs (B, T, d_in), and (B, T, d) where targets live.

    That is the stream after the last edited block, or that map's own output behind a norm.
    """
    if model.writes_residual:
        trace = model.trace(batch.ids, batch.mask, inputs=[linear], leaving=[last.layer])
        stream = trace.leaving[last.layer]
    else:
        trace = model.trace(batch.ids, batch.mask, inputs=[linear], outputs=[last])
        stream = trace.outputs[last.name]
    return trace.inputs[linear.name], stream
