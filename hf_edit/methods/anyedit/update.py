"""Stage 2, backend MEMIT: the targets of all edits become one closed-form update per layer (AnyEdit, eq. 19)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hf_edit.methods.anyedit.targets import Targets
from hf_edit.methods.base import KeyValues
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.prompting import Encoded
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.ridge import Penalty, ridge_update


def spread_update(
    model: EditableModel,
    linears: Sequence[EditableLinear],
    encoded: Sequence[Encoded],
    targets: Sequence[Targets],
    penalty_of: Callable[[EditableLinear], Penalty],
    own_weight: float,
) -> tuple[dict[str, LowRankDelta], list[dict[str, KeyValues]]]:
    """One joint update for all edits, spread over the layers in order.

    Layer i of R takes the share 1 / (R - i) of what is still missing at the last one, measured with the updates of
    the layers before it in place. Every other token of the edits' own texts is preserved.

    Args:
        linears: the edited maps, by ascending layer; the targets belong to the last.
        penalty_of: what an update of this linear must not change.
        own_weight: weight of the edits' own other tokens.

    Returns:
        The deltas by linear name, and per edit what each linear was asked for.
    """
    last, first = linears[-1], linears[0]
    texts = [model.ids([e.ids])[0] for e in encoded]
    entering = [model.trace(ids, entering=[first.layer]).entering[first.layer] for ids in texts]
    wanted = [  # Z = H0 + delta, per edit (n, d)
        _stream(model, ids, start, first, last)[t.positions] + t.deltas.to(start)
        for ids, start, t in zip(texts, entering, targets, strict=True)
    ]

    deltas: dict[str, LowRankDelta] = {}
    source: list[dict[str, KeyValues]] = [{} for _ in encoded]
    for index, linear in enumerate(linears):
        keys, preserved, residuals = [], [], []
        for ids, start, target, goal, asked in zip(texts, entering, targets, wanted, source, strict=True):
            with model.updated(deltas):
                inputs = model.trace(ids, inputs=[linear], start={first.layer: start}).inputs[linear.name][0]  # (T, f)
                reached = _stream(model, ids, start, first, last)[target.positions]
            residual = (goal - reached) / (len(linears) - index)  # (n, d)
            is_key = torch.zeros(inputs.shape[0], dtype=torch.bool, device=inputs.device)
            is_key[target.positions] = True
            keys.append(inputs[is_key])
            preserved.append(inputs[~is_key])
            residuals.append(residual)
            asked[linear.name] = KeyValues(target.positions, residual.float().cpu())
        deltas[linear.name] = ridge_update(
            torch.cat(keys).T,
            torch.cat(residuals).T,
            own_weight**0.5 * torch.cat(preserved).T,
            penalty_of(linear),
        ).to(dtype=torch.promote_types(model.dtype, torch.float32))
    return deltas, source


def _stream(
    model: EditableModel, ids: Tensor, entering: Tensor, first: EditableLinear, last: EditableLinear
) -> Tensor:
    """(T, d): where targets live, the stream after the last edited block, or that map's own output behind a norm."""
    start = {first.layer: entering}
    if model.writes_residual:
        return model.trace(ids, leaving=[last.layer], start=start).leaving[last.layer][0]
    return model.trace(ids, outputs=[last], start=start).outputs[last.name][0]
