"""Stage 2, backend UnKE (arXiv 2405.15349): one decoder block is trained until its output carries the targets.

Three losses, each the mean over its tokens of |block(x) - y|^2:
- keys (key learning): y is the block's output with stage 1's change in place;
- the edits' other tokens (key paraphrase) and preserved texts (key preservation): y is the block's own output.
All are in units of the mean squared change asked at a key, so that weights and errors mean the same in every model.

What differs from the published code: keys have a weight of their own (there each counts 1 / all tokens), padding and
tokens that are a key in another text count nothing, the learning rate is relative, no weight decays, and training
stops when the keys are reached. Norms and biases stay as they are, since their change is no low-rank change of a
linear map.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_edit.errors import UnsupportedModelError
from hf_edit.methods.anyedit.targets import Targets
from hf_edit.methods.anyedit.unke_config import UnKESettings
from hf_edit.methods.beginnings import beginnings
from hf_edit.models.editable import EditableLinear, EditableModel, check_finite
from hf_edit.models.reach import Reach
from hf_edit.progress import Progress
from hf_edit.prompting import Encoded
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.weighted import compressed_on


ROUTER = re.compile(r"(^|[._])router(\.|$)|\.gate(\.|$)")
"""Names of maps that choose among experts."""
KEY, OWN, PRESERVED, FREE = range(4)
"""Kinds of tokens. Free ones count nothing: padding, and what is a key in another text, which cannot stay as it is."""
BATCH_TOKENS = 4096  # tokens that run together; every step sees all of them, so this bounds memory and nothing else


def train_block(
    model: EditableModel,
    layer: int,
    encoded: Sequence[Encoded],
    targets: Sequence[Targets],
    preserved: Sequence[Encoded],
    settings: UnKESettings,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, LowRankDelta], dict[str, float]]:
    """Train all linear maps of one block for all edits at once, beside the weights, which are only read.

    Targets are changes of the MLP output map's output. What such a change makes of the block's output is found by
    running the block with it, which also holds where a norm or a factor stands between the two.

    Args:
        layer: the block.
        encoded: the edits' texts.
        targets: per edit, changes of the output of `model.linears[layer]`.
        preserved: texts over which the block keeps its outputs, such as questions with the base's own answers.
        seed: of the factors that training begins with.

    Returns:
        The change of each linear map by its full name, and figures: `steps` taken; `key_error`, `own_error` and
        `preserved_error` with the returned change in place, roots of the losses above (a `key_error` of 1 is nothing
        learned); with full training `compression_error.<name>`, the share of a map's change on the trained tokens that
        its low rank lost.

    Raises:
        ComputationError: a loss that is not finite.
    """
    texts = [*(_Text(e, t) for e, t in zip(encoded, targets, strict=True)), *(_Text(e, None) for e in preserved)]
    edited = {
        beginnings(e.ids)[place] for e, t in zip(encoded, targets, strict=True) for place in t.positions.tolist()
    }
    batches = [_batch(model, layer, group, edited) for group in _grouped(texts)]
    objective = _Objective.of(batches, settings)
    linears = trained_linears(model, layer)
    changes, parameters = _start(linears, settings, seed, torch.promote_types(model.dtype, torch.float32))
    steps = _train(model, layer, batches, objective, changes, parameters, settings, progress)

    deltas, figures = {}, {"steps": float(steps)}
    with torch.no_grad():
        for linear in linears:
            change = changes[linear.name]
            if isinstance(change, LowRankDelta):
                deltas[linear.name] = LowRankDelta(change.B.detach(), change.A.detach())
            else:
                inputs = _weighted_inputs(model, linear, batches, objective, changes)
                delta, lost = compressed_on(change, inputs.to(change.device), settings.rank)
                deltas[linear.name] = delta.to(dtype=change.dtype)
                figures[f"compression_error.{linear.name}"] = lost
        sums = torch.stack([_squared_errors(model, layer, batch, deltas) for batch in batches]).sum(dim=0)
    return deltas, figures | objective.errors(sums)


def trained_linears(model: EditableModel, layer: int) -> list[EditableLinear]:
    """The linear maps of a block that an adapter can change wherever it is opened; a router is left alone.

    Raises:
        UnsupportedModelError: there is none.
    """
    reach = Reach(model.model)
    found = [
        linear
        for linear in model.block_linears(layer)
        if not ROUTER.search(linear.name) and reach.reaches(linear.name)
    ]
    if not found:
        raise UnsupportedModelError(
            f"PEFT puts no adapter around any linear map of block {layer}.", "Use another backend than unke."
        )
    return found


class _Text(NamedTuple):
    encoded: Encoded
    targets: Targets | None  # None: preserved


@dataclass(frozen=True, eq=False)
class _Batch:
    """Texts padded on the right, which no other token sees, and what the block shall make of them."""

    ids: Tensor  # (B, T)
    kinds: Tensor  # (B, T), KEY, OWN, PRESERVED or FREE
    entering: Tensor  # (B, T, d)
    goal: Tensor  # (B, T, d)
    asked: float  # sum of the squared changes asked at the keys


@dataclass(frozen=True, eq=False)
class _Objective:
    """What a squared error counts.

    Args:
        counts: (3,) tokens of each kind.
        weights: (3,) weight of one token's squared error in the loss.
        unit: mean squared change asked at a key.
    """

    counts: Tensor
    weights: Tensor
    unit: float

    @classmethod
    def of(cls, batches: Sequence[_Batch], settings: UnKESettings) -> _Objective:
        kinds = torch.cat([batch.kinds.flatten() for batch in batches])
        counts = torch.bincount(kinds, minlength=FREE)[:FREE].double()
        asked = sum(batch.asked for batch in batches)
        unit = asked / float(counts[KEY]) or 1.0  # nothing asked: all errors are 0 already
        given = [settings.key_weight, settings.own_weight, settings.preserved_weight]
        weights = torch.tensor(given, dtype=counts.dtype, device=counts.device) / counts.clamp_min(1) / unit
        return cls(counts, weights, unit)

    def errors(self, sums: Tensor) -> dict[str, float]:
        """Root mean squares, relative to the unit, of the kinds of tokens that there are."""
        names = ("key_error", "own_error", "preserved_error")
        means = (sums.double() / self.counts / self.unit).sqrt().tolist()
        return {name: mean for name, mean, count in zip(names, means, self.counts, strict=True) if count}


def _grouped(texts: Sequence[_Text]) -> Iterator[list[_Text]]:
    """Texts of like length together, so that little is padded."""
    group: list[_Text] = []
    for text in sorted(texts, key=lambda text: len(text.encoded)):
        if group and (len(group) + 1) * len(text.encoded) > BATCH_TOKENS:
            yield group
            group = []
        group.append(text)
    yield group


def _batch(model: EditableModel, layer: int, texts: Sequence[_Text], edited: Collection[int]) -> _Batch:
    """The texts, padded. `edited` are beginnings that end in a key."""
    ids, _ = model.ids([text.encoded.ids for text in texts])
    entering = model.trace(ids, entering=[layer]).entering[layer]
    linear = model.linears[layer]
    shift = entering.new_zeros(*ids.shape, linear.d_out)
    kinds = torch.full_like(ids, FREE)
    for row, (encoded, targets) in enumerate(texts):
        kinds[row, : len(encoded)] = PRESERVED if targets is None else OWN
        kinds[row, [place for place, beginning in enumerate(beginnings(encoded.ids)) if beginning in edited]] = FREE
        if targets is not None:
            kinds[row, targets.positions] = KEY
            shift[row, targets.positions] = targets.deltas.to(shift)
    with torch.no_grad():
        own = model.block_outputs(layer, ids, entering)
        goal = model.block_outputs(layer, ids, entering, shift=(linear, shift))
    asked = float((goal - own).double().square().sum())
    check_finite(torch.tensor(asked), f"The change asked of block {layer}")
    return _Batch(ids, kinds, entering, goal, asked)


def _start(
    linears: Sequence[EditableLinear], settings: UnKESettings, seed: int, dtype: torch.dtype
) -> tuple[dict[str, LowRankDelta | Tensor], list[dict[str, Any]]]:
    """Changes of zero by linear name, and their tensors with Adam's learning rates.

    One learning rate serves both parametrisations: B moves so fast that the product's first step moves the output at
    an input about as far as a step of the whole weight would. A moves by that share of its own size.
    """
    generator = torch.Generator().manual_seed(seed)
    changes: dict[str, LowRankDelta | Tensor] = {}
    parameters: list[dict[str, Any]] = []
    for linear in linears:
        weight = linear.module.weight
        assert isinstance(weight, Tensor)
        step = settings.learning_rate * float(weight.detach().float().square().mean().sqrt())
        if settings.parametrisation == "full":
            dW = torch.zeros(linear.d_out, linear.d_in, dtype=dtype, device=weight.device, requires_grad=True)
            changes[linear.name] = dW
            parameters.append({"params": [dW], "lr": step})
            continue
        rank = min(settings.rank, linear.d_out, linear.d_in)
        spread = linear.d_in**-0.5
        A = (spread * torch.randn(rank, linear.d_in, generator=generator, dtype=dtype)).to(weight.device)
        B = torch.zeros(linear.d_out, rank, dtype=dtype, device=weight.device)
        changes[linear.name] = LowRankDelta(B.requires_grad_(), A.requires_grad_())
        parameters.append({"params": [B], "lr": step * linear.d_in / rank})
        parameters.append({"params": [A], "lr": settings.learning_rate * spread})
    return changes, parameters


def _train(
    model: EditableModel,
    layer: int,
    batches: Sequence[_Batch],
    objective: _Objective,
    changes: Mapping[str, LowRankDelta | Tensor],
    parameters: list[dict[str, Any]],
    settings: UnKESettings,
    progress: Progress,
) -> int:
    """Adam on all texts until the keys are reached; returns the number of steps."""
    optimiser = torch.optim.Adam(parameters)
    leaves = [leaf for group in parameters for leaf in group["params"]]
    progress.stage(f"block {layer}", settings.steps)
    for step in range(settings.steps):
        optimiser.zero_grad()
        total = torch.zeros_like(objective.counts)
        for batch in batches:
            sums = _squared_errors(model, layer, batch, changes)
            (sums @ objective.weights.to(sums)).backward(inputs=leaves)
            total += sums.detach()
        check_finite(total, f"The loss of block {layer} at step {step + 1}")
        key_error = objective.errors(total)["key_error"]
        progress.step(key_error=key_error)
        if key_error < settings.stop_error:
            return step
        optimiser.step()
    return settings.steps


def _squared_errors(
    model: EditableModel, layer: int, batch: _Batch, changes: Mapping[str, LowRankDelta | Tensor]
) -> Tensor:
    """(3,) sums over the tokens of each kind of |block(x) - y|^2."""
    with model.updated(changes):
        outputs = model.block_outputs(layer, batch.ids, batch.entering)
    accumulate = torch.promote_types(outputs.dtype, torch.float32)
    errors = (outputs.to(accumulate) - batch.goal.to(accumulate)).square().sum(dim=-1)  # (B, T)
    return torch.stack([errors[batch.kinds == kind].sum() for kind in (KEY, OWN, PRESERVED)])


def _weighted_inputs(
    model: EditableModel,
    linear: EditableLinear,
    batches: Sequence[_Batch],
    objective: _Objective,
    changes: Mapping[str, LowRankDelta | Tensor],
) -> Tensor:
    """(d_in, n) what the trained block feeds this map at every token, times the root of the token's weight."""
    columns = []
    with model.updated(changes):
        for batch in batches:
            start = {linear.layer: batch.entering}
            inputs = model.trace(batch.ids, inputs=[linear], start=start).inputs[linear.name]
            real = batch.kinds != FREE
            columns.append(inputs[real] * objective.weights.to(inputs)[batch.kinds[real]].sqrt()[:, None])
    return torch.cat(columns).T
