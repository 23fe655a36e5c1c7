"""Finding out by trying what a model allows, so that no table has to know.

What is found is asked for when it is first needed, which may be while hooks are in place: they are set aside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_edit.models.hooks import adding, set_aside
from hf_edit.models.memory import ran_out
from hf_edit.models.prefix import States


if TYPE_CHECKING:
    from hf_edit.models.editable import EditableLinear, EditableModel


TOLERANCE = 0.1
"""Share of what the context changes that may get lost: far above rounding in bf16, far below a context forgotten."""


@torch.no_grad()
def carries_context(attempt: Callable[[], tuple[Tensor, Tensor, Tensor]]) -> bool:
    """Whether a short cut keeps what it is to carry on.

    Args:
        attempt: gives logits by the short cut, by the plain way, and with what is carried lost, of one shape.
    """
    try:
        found, plain, lost = (logits.double() for logits in attempt())
    except Exception as error:  # a model's own code, which may fail in any way on what is not of its kind
        if ran_out(error):
            raise  # says nothing of the model
        return False
    return bool((found - plain).norm() <= TOLERANCE * (lost - plain).norm())


@set_aside()
def skips_blocks(model: EditableModel) -> bool:
    """Whether the upper blocks need nothing of the lower ones but the residual stream, and run without them."""
    ids, last = torch.arange(1, 9, device=model.device)[None], model.n_layers - 1

    def attempt() -> tuple[Tensor, Tensor, Tensor]:
        model.trace(ids, leaving=[0])  # without those above
        stream = model.trace(ids, entering=[last]).entering[last]
        found, other = (model.logits(ids, start={last: states}) for states in (stream, stream.roll(1, dims=1)))
        return found, model.logits(ids), other

    return carries_context(attempt)


@set_aside()
def keeps_states(model: EditableModel) -> bool:
    """Whether attention states say all that the blocks know of a prefix; on two rows, one padded on its left."""
    ids = torch.arange(1, 13, device=model.device).repeat(2, 1)
    entering = model.trace(ids, entering=[0]).entering[0]
    mask, everywhere = torch.ones_like(ids), torch.ones(2, 4, dtype=torch.bool, device=model.device)
    ids[1, 1:], entering[1, 1:], mask[1, 0] = ids[1, :-1].clone(), entering[1, :-1].clone(), 0

    def attempt() -> tuple[Tensor, Tensor, Tensor]:
        like = torch.empty(0, device=model.device, dtype=model.dtype)
        prefix = model.extended(
            States.none(0, model.n_layers, like), ids[:, :8], start={0: entering[:, :8]}, mask=mask[:, :8]
        )
        rest = {0: entering[:, 8:]}
        found = model.logits_at(ids[:, 8:], everywhere, start=rest, prefix=prefix, mask=mask)
        plain = torch.cat([model.logits(ids[:1])[0, 8:], model.logits(ids[:1, :-1])[0, 7:]])
        return found, plain, model.logits_at(ids[:, 8:], everywhere, start=rest)

    return carries_context(attempt)


@set_aside()
def arrives(model: EditableModel, linear: EditableLinear) -> bool:
    """Whether a change of a linear's output arrives unchanged in the residual stream behind its block."""
    layer, ids = linear.layer, torch.arange(1, 5, device=model.device)[None]
    plain = model.trace(ids, leaving=[layer], outputs=[linear])
    before, size = plain.leaving[layer], plain.outputs[linear.name].abs().mean()
    if before.shape[2] != linear.d_out:  # several lanes side by side, or another space than the stream's
        return False
    eps = torch.finfo(model.dtype).eps
    direction = torch.linspace(-1, 1, linear.d_out, device=before.device, dtype=before.dtype).expand_as(before)
    for scale in (1, 8):  # a norm may happen to return one of them unchanged, never both
        shift = scale * size * direction
        with adding(linear.module, shift):
            after = model.trace(ids, leaving=[layer]).leaving[layer]
        # the stream's large entries, beside which little of a shift may be left in bf16, are known to so much
        written = plain.outputs[linear.name].reshape(before.shape).abs() + shift.abs()
        rounding = 2 * eps * (torch.maximum(after.abs(), before.abs()) + written)
        if ((after - before - shift).abs() > 0.05 * shift.abs().max() + rounding).any():
            return False
    return True
