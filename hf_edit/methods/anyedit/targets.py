"""Stage 1: for each chunk, the change of the edited map's output that makes the model say it (AnyEdit, eq. 9-12).

The change is made at the output of the edited linear, at the key position. Where that map writes to the residual
stream this is the shift of the block's output of the paper; where a norm stands between (Gemma 2 and 3) it is the one
that the weight can really produce.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_edit.methods.anyedit.chunks import Chunk, key_position
from hf_edit.methods.anyedit.config import AnyEditConfig
from hf_edit.methods.anyedit.objective import nested_lengths, token_weights
from hf_edit.models.editable import EditableLinear, EditableModel, check_finite
from hf_edit.models.prefix import Prefix
from hf_edit.progress import Progress
from hf_edit.prompting import Encoded


@dataclass(frozen=True, eq=False)
class Targets:
    """What stage 1 found for one edit.

    Args:
        positions: (n,) key positions in prompt + answer.
        deltas: (n, d) desired changes of the output there, fp32.
        losses: (n,) mean negative log likelihood of each chunk's own tokens with its change in place.
        evaluations: (n,) forward passes of the optimisation.
    """

    positions: Tensor
    deltas: Tensor
    losses: Tensor
    evaluations: Tensor


def optimise_targets(
    model: EditableModel,
    linear: EditableLinear,
    encoded: Encoded,
    chunks: Sequence[Chunk],
    config: AnyEditConfig,
    n_edits: int,
    progress: Progress,
) -> Targets:
    """Optimise the chunks in order, each with the changes of those before it in place.

    Blocks below the edited one run once. The blocks above keep the attention states of everything before the current
    chunk, which no longer changes, and run on the chunk's tokens alone.
    """
    layer = linear.layer
    ids, _ = model.ids([encoded.ids])
    trace = model.trace(ids, entering=[layer], outputs=[linear], leaving=[layer])
    entering = trace.entering[layer]  # (1, T, d)
    reference = trace.leaving[layer] if model.writes_residual else trace.outputs[linear.name]

    check_finite(reference, f"The hidden state of layer {layer} over an edit's text")

    positions = [key_position(encoded.answer_start, chunk) for chunk in chunks]
    prefix = model.no_prefix(layer)
    if positions[0]:
        before = slice(0, positions[0])
        prefix = model.extended(prefix, ids[:, before], start={layer: entering[:, before]})

    found: list[ChunkTarget] = []
    for index, (chunk, position) in enumerate(zip(chunks, positions, strict=True)):
        lengths = nested_lengths(chunks, index, config.objective, config.nested_chunks)
        end = position + lengths[-1]
        window = ChunkWindow(
            ids=ids[:, position:end],
            labels=ids[0, position + 1 : end + 1],
            lengths=lengths,
            entering=entering[:, position:end],
            reference_norm=float(reference[0, position].float().norm()),
            first_clamp=config.first_clamp_of(index, n_edits),
        )
        target = _optimise_chunk(model, linear, window, prefix, config)
        check_finite(torch.tensor(target.loss), f"The loss of chunk {index + 1} of {len(chunks)}")
        found.append(target)
        progress.step(loss=target.loss)
        if index + 1 < len(chunks):
            settled = positions[index + 1] - position
            prefix = model.extended(
                prefix,
                window.ids[:, :settled],
                start={layer: window.entering[:, :settled]},
                shift=(linear, _at_first(target.delta, settled)),
            )
    return Targets(
        torch.tensor(positions),
        torch.stack([t.delta for t in found]).cpu(),
        torch.tensor([t.loss for t in found]),
        torch.tensor([t.evaluations for t in found]),
    )


@dataclass(frozen=True, eq=False)
class ChunkWindow:
    """The tokens that say one chunk and what its target is to prepare; the first stands at the key position."""

    ids: Tensor  # (1, n)
    labels: Tensor  # (n,) what each token predicts
    lengths: list[int]  # tokens of the nested texts that the objective is over: the chunk itself, then longer ones
    entering: Tensor  # (1, n, d) residual stream before the edited block
    reference_norm: float  # |h0| at the key position
    first_clamp: float  # longest change to begin with, in units of |h0|


@dataclass(frozen=True, eq=False)
class ChunkTarget:
    """The best change found for one chunk."""

    delta: Tensor  # (d,) fp32
    loss: float
    evaluations: int


def _optimise_chunk(
    model: EditableModel, linear: EditableLinear, window: ChunkWindow, prefix: Prefix, config: AnyEditConfig
) -> ChunkTarget:
    """Adam on the change, projected onto a ball around zero after each step; the best change seen is kept."""
    d, own = linear.d_out, window.lengths[0]
    accumulate = torch.promote_types(model.dtype, torch.float32)
    delta = torch.zeros(d, dtype=accumulate, device=window.ids.device, requires_grad=True)
    # the first step of Adam moves every coordinate by its learning rate, so the vector by learning_rate * |h0|
    learning_rate = config.learning_rate * window.reference_norm / d**0.5

    def token_losses(delta: Tensor) -> Tensor:
        logits = model.logits(
            window.ids,
            start={linear.layer: window.entering},
            shift=(linear, _at_first(delta, window.ids.shape[1])),
            prefix=prefix,
        )
        return F.cross_entropy(logits[0].to(accumulate), window.labels, reduction="none")

    weights = token_weights(token_losses, delta, window.lengths, learning_rate)
    optimiser = torch.optim.Adam([delta], lr=learning_rate)
    best, best_loss = ChunkTarget(delta.detach().clone(), float("inf"), 0), float("inf")
    for evaluation in range(1, config.max_evaluations + 1):
        losses = token_losses(delta)
        loss = losses @ weights
        if loss.item() < best_loss:
            best_loss = loss.item()
            best = ChunkTarget(delta.detach().clone(), losses[:own].mean().item(), evaluation)
        if loss.item() < config.stop_loss or evaluation == config.max_evaluations:
            break
        penalised = loss + config.weight_decay * delta.norm() / window.reference_norm**2
        (delta.grad,) = torch.autograd.grad(penalised, [delta])
        optimiser.step()
        radius = window.reference_norm * clamp_at(
            evaluation / config.max_evaluations, window.first_clamp, config.clamp
        )
        with torch.no_grad():
            delta.mul_(radius / delta.norm().clamp_min(radius))
    return ChunkTarget(best.delta, best.loss, evaluation)


def clamp_at(progress: float, first: float, last: float) -> float:
    """The clamp when `progress` (0 to 1) of the evaluations are spent: the first one, then in a line to the last.

    A change no longer than the chunk needs spares everything else; one that does not get there is given more room.
    """
    return first + (last - first) * max(0.0, 2 * progress - 1)


def _at_first(delta: Tensor, n: int) -> Tensor:
    """(1, n, d): the change at the first of n tokens, nothing at the others."""
    return F.pad(delta[None, None], (0, 0, 0, n - 1))
