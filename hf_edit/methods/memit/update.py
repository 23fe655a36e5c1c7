"""Stage 2: the targets of all facts become one closed-form update per layer (MEMIT, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from hf_edit.methods.base import KeyValues
from hf_edit.methods.beginnings import beginnings
from hf_edit.methods.memit.facts import Fact, KeyedText
from hf_edit.methods.memit.targets import Targets
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.prompting import Encoded
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.ridge import Columns


Solver = Callable[[EditableLinear, Columns], LowRankDelta]


def spread_update(
    model: EditableModel,
    linears: Sequence[EditableLinear],
    facts: Sequence[Fact],
    targets: Targets,
    earlier: Sequence[Encoded],
    earlier_weight: float,
    batch: int,
    solve: Solver,
) -> tuple[dict[str, LowRankDelta], list[dict[str, KeyValues]]]:
    """One joint update for all facts, spread over the layers in order.

    Layer i of R takes the share 1 / (R - i) of what is still missing at the last one, measured on the facts' own
    prompts with the updates of the layers before it in place. Nothing that grows with the number of facts is kept
    but the targets, once the facts outnumber the inputs of a map.

    Args:
        linears: the edited maps, by ascending layer; the targets belong to the last.
        earlier: texts of which every token is preserved, with weight `earlier_weight`, but for those that are keys of
            a fact: what is edited cannot stay as it is.
        batch: facts, or earlier texts, run at once.
        solve: the update of a linear from its columns.

    Returns:
        The deltas by linear name, and per fact what each linear was asked for.
    """
    deltas: dict[str, LowRankDelta] = {}
    source: list[dict[str, KeyValues]] = [{} for _ in facts]
    wanted = (targets.states + targets.deltas).to(model.device)
    edited = {beginnings(text.encoded.ids)[text.key] for fact in facts for text in fact.texts}
    for index, linear in enumerate(linears):
        columns = Columns(linear.d_out, linear.d_in)
        with model.updated(deltas):
            for part in _parts(len(facts), batch):
                keys = mean_keys(model, linear, facts[part])  # (b, f)
                if index == 0:  # nothing has moved yet
                    missing = targets.deltas[part].to(model.device)
                else:
                    missing = wanted[part] - _reached(model, linears[-1], facts[part])
                residuals = missing / (len(linears) - index)  # (b, d)
                columns.add(keys.T, residuals.T, keys.new_zeros(linear.d_in, 0))
                for fact, asked, residual in zip(facts[part], source[part], residuals, strict=True):
                    asked[linear.name] = KeyValues(torch.tensor([fact.key]), residual[None].float().cpu())
            for part in _parts(len(earlier), batch):
                ids, mask = model.ids([text.ids for text in earlier[part]])
                inputs = model.trace(ids, mask, inputs=[linear]).inputs[linear.name]
                staying = [[b not in edited for b in beginnings(text.ids)] for text in earlier[part]]
                tokens = torch.cat([row[: len(s)][s] for row, s in zip(inputs, staying, strict=True)]).T  # (f, m)
                none = tokens.new_zeros(linear.d_in, 0)
                columns.add(none, tokens.new_zeros(linear.d_out, 0), earlier_weight**0.5 * tokens)
        deltas[linear.name] = solve(linear, columns).to(dtype=torch.promote_types(model.dtype, torch.float32))
    return deltas, source


def mean_keys(model: EditableModel, linear: EditableLinear, facts: Sequence[Fact]) -> Tensor:
    """(F, d_in): inputs of the linear at the keys of each fact's texts, averaged."""
    texts = [text for fact in facts for text in fact.texts]
    ids, mask, last = _up_to_keys(model, texts)
    inputs = model.trace(ids, mask, inputs=[linear]).inputs[linear.name]
    found = inputs[torch.arange(len(texts)), last]  # (R, f)
    per_fact = found.split([len(fact.texts) for fact in facts])
    return torch.stack([found.new_tensor(fact.shares()) @ keys for fact, keys in zip(facts, per_fact, strict=True)])


def _reached(model: EditableModel, linear: EditableLinear, facts: Sequence[Fact]) -> Tensor:
    """(F, d): the residual stream after the linear's block, at the key of each fact's own prompt."""
    texts = [fact.texts[0] for fact in facts]
    ids, mask, last = _up_to_keys(model, texts)
    stream = model.trace(ids, mask, leaving=[linear.layer]).leaving[linear.layer]
    return stream[torch.arange(len(texts)), last]


def _up_to_keys(model: EditableModel, texts: Sequence[KeyedText]) -> tuple[Tensor, Tensor, Tensor]:
    """The texts as far as their keys see: ids and mask, (R, T), and where the keys stand, (R,)."""
    ids, mask = model.ids([text.encoded.ids[: text.key + 1] for text in texts])
    return ids, mask, torch.tensor([text.key for text in texts])


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(first, first + size) for first in range(0, count, size))
