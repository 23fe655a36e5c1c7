"""Training an update on the answers it is to give, until the model gives them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_edit.batching import batched
from hf_edit.methods.base import Checkpoints
from hf_edit.methods.training.factors import Factors
from hf_edit.methods.training.teacher import Known, Teacher, divergence
from hf_edit.methods.training.texts import Batch, Text, answer_logits
from hf_edit.models.editable import EditableModel, check_finite
from hf_edit.progress import Progress
from hf_edit.settings import Settings, setting
from hf_edit.solvers.low_rank import LowRankDelta, summed


R = TypeVar("R")
FORGOTTEN = 0.005
"""A text whose loss is below this is drawn as if it were this: nothing is never looked at again."""
WARM_UP = 5
SLOW_BELOW = 0.3
"""Mean loss below which steps get shorter, with its root: at full length they would jump about the end."""
UNSEEN = 100.0
"""The loss of a text that was not drawn yet."""
SHRINK_LOSS = 2.0
"""How much less sure, in units of the stopping loss, an answer may become by scaling the update down."""
SCALES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
SHORTEST = 0.6
SHRINK_BATCH = 8
KEPT_EVERY = 10


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """How an update is trained, whatever its form."""

    learning_rate: float = setting(6e-3, "Adam's step size on the factors.", above=0)
    batch: int = setting(8, "Texts per step, drawn with probability proportional to their last loss.", at_least=1)
    max_steps: int = setting(60, "Most steps, for as many texts as a batch holds; more texts get more.", at_least=1)
    stop_loss: float = setting(0.03, "Done when every answer is right and their mean loss is below this.", at_least=0)
    size_weight: float = setting(
        0.01,
        "Weight of tr(dW C dW^T), what the update moves elsewhere, as a share of the loss that is left.",
        at_least=0,
    )
    drift_weight: float = setting(2.0, "Weight of the KL divergence to the base on its own answers.", at_least=0)
    drift_share: float = setting(0.5, "Conversations per step for the divergence, by text of the step.", above=0)
    shrink: bool = setting(True, "Scale the finished update down as far as every answer stays right and sure.")


@dataclass(frozen=True, eq=False)
class Trainee:
    """A text to learn.

    Args:
        judged: it must be right before training ends; other wordings only help.
        weight: of its loss.
    """

    text: Text
    judged: bool
    weight: float


@dataclass(frozen=True, eq=False)
class Trained:
    """The outcome.

    Args:
        steps: taken.
        losses: per judged trainee, in order, the mean negative log likelihood per answer token.
        right: per judged trainee, whether every token of the answer is the likeliest, which greedy decoding says.
        scale: what the update was scaled down by at the end.
    """

    steps: int
    losses: list[float]
    right: list[bool]
    scale: float


def train(
    model: EditableModel,
    first: int,
    trainees: Sequence[Trainee],
    factors: Factors,
    teacher: Teacher,
    config: TrainingConfig,
    seed: int,
    checkpoints: Checkpoints,
    progress: Progress,
    decoys: Sequence[Mapping[str, LowRankDelta]] = (),
) -> Trained:
    """Adam on the factors: the drawn answers' mean loss * (1 + size_weight * size) + drift_weight * KL to the base.

    The size counts as a share of the loss, and no gradient goes through that share. The gradient of the loss vanishes
    with the loss; a weight of its own would decide at which loss training comes to rest, the sooner the more edits.

    Args:
        first: the lowest edited block, which the texts enter.
        teacher: of the texts whose answers are to stay.
        seed: of what is drawn.
        checkpoints: a killed run goes on from the last one kept there, to the same bits.
        decoys: other updates of the same model; one of them stands beside the trained one in every other step, and
            answers must come right beside each, too.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(factors.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
    state = _State(trainees)
    judged = state.judged
    drawn_at_once = min(config.batch, 2 * len(judged), len(trainees))
    drift_at_once = max(1, round(config.drift_share * drawn_at_once))
    budget = round(config.max_steps * len(trainees) / drawn_at_once)
    progress.stage("training", budget)
    key = _digest(trainees, teacher, factors, config, seed, decoys)
    step = _resumed(checkpoints.load(key), optimiser, generator, state)
    progress.step(step)
    while step < budget:
        step += 1
        optimiser.zero_grad()
        drawn = torch.multinomial(state.chances(), drawn_at_once, generator=generator).tolist()
        beside = _drawn_decoy(decoys, generator)
        weights = torch.tensor([trainees[i].weight for i in drawn], dtype=torch.float64)
        weights /= weights.sum()
        losses, right = _descended(model, first, [trainees[i].text for i in drawn], weights, factors, beside)
        check_finite(losses, f"The loss of step {step}")
        state.note(drawn, losses, right)
        (config.size_weight * (weights.to(losses) @ losses) * factors.size()).backward()
        known = teacher.drawn(drift_at_once, generator) if config.drift_weight else []
        _held(model, first, known, config.drift_weight, factors)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * min(1.0, step / WARM_UP, (state.mean_loss() / SLOW_BELOW) ** 0.5)
        optimiser.step()
        progress.step(loss=state.mean_loss())
        if state.done(config.stop_loss) and _confirmed(model, first, trainees, factors, state, config, decoys):
            break
        if step % KEPT_EVERY == 0:
            checkpoints.save(key, _snapshot(step, optimiser, generator, state))
    else:
        _confirmed(model, first, trainees, factors, state, config, decoys)
    scale = _shrunk(model, first, trainees, factors, state, config) if config.shrink else 1.0
    return Trained(step, [state.losses[i] for i in judged], [state.right[i] for i in judged], scale)


@torch.no_grad()
def objective(
    model: EditableModel,
    first: int,
    trainees: Sequence[Trainee],
    factors: Factors,
    teacher: Teacher,
    config: TrainingConfig,
    seed: int,
) -> float:
    """What `train` makes small, over all trainees and as many conversations as one step of them would see."""
    losses, _ = answers(model, first, [trainee.text for trainee in trainees], factors.deltas())
    weights = torch.tensor([trainee.weight for trainee in trainees], dtype=torch.float64, device=losses.device)
    loss = float(weights @ losses.double() / weights.sum()) * (1 + config.size_weight * float(factors.size()))
    if not config.drift_weight:
        return loss
    count = max(1, round(config.drift_share * len(trainees)))
    known = teacher.drawn(count, torch.Generator().manual_seed(seed))
    with model.updated(factors.deltas()):
        parts = model.memory.in_parts(
            "judging", known, partial(_drift, model, first, known), lambda one: len(one.text.ids)
        )
        return loss + config.drift_weight * float(sum(parts))


class _State:
    """What was last seen of each trainee."""

    def __init__(self, trainees: Sequence[Trainee]) -> None:
        self.judged = [i for i, trainee in enumerate(trainees) if trainee.judged]
        self.weights = [trainee.weight for trainee in trainees]
        self.losses = [UNSEEN] * len(trainees)
        self.right = [False] * len(trainees)

    def note(self, drawn: Sequence[int], losses: Tensor, right: Tensor) -> None:
        for i, loss, ok in zip(drawn, losses.tolist(), right.tolist(), strict=True):
            self.losses[i], self.right[i] = loss, ok

    def chances(self) -> Tensor:
        """In proportion to which the trainees are drawn."""
        return torch.tensor([w * max(loss, FORGOTTEN) for w, loss in zip(self.weights, self.losses, strict=True)])

    def mean_loss(self) -> float:
        """Of the judged ones that were seen; UNSEEN as long as none was."""
        seen = [self.losses[i] for i in self.judged if self.losses[i] < UNSEEN]
        return sum(seen) / len(seen) if seen else UNSEEN

    def done(self, stop_loss: float) -> bool:
        return all(self.right[i] for i in self.judged) and self.mean_loss() < stop_loss


def answers(
    model: EditableModel, first: int, texts: Sequence[Text], deltas: Mapping[str, LowRankDelta]
) -> tuple[Tensor, Tensor]:
    """Per text the mean loss over the answer's tokens, (B,), and whether all are the likeliest, (B,)."""

    def judged(part: Sequence[int]) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), model.updated(deltas):
            return _judged(model, first, [texts[i] for i in part])

    return _in_order(_by_length(model, "judging", texts, judged))


def _descended(
    model: EditableModel,
    first: int,
    texts: Sequence[Text],
    weights: Tensor,
    factors: Factors,
    beside: Mapping[str, LowRankDelta],
) -> tuple[Tensor, Tensor]:
    """As `answers`; the gradient of the texts' losses times `weights` (B,) is added to that of the factors.

    Args:
        beside: another update that is in place.
    """

    def descended(part: Sequence[int]) -> tuple[tuple[Tensor, Tensor], Sequence[Tensor]]:
        with model.updated(summed([factors.deltas(), beside])):
            losses, right = _judged(model, first, [texts[i] for i in part])
            objective = weights[list(part)].to(losses) @ losses
            return (losses.detach(), right), torch.autograd.grad(objective, factors.parameters())

    found = []
    for part, (judged, gradients) in _by_length(model, "training", texts, descended, backward=True):
        _add_gradients(factors, gradients)
        found.append((part, judged))
    return _in_order(found)


def _held(model: EditableModel, first: int, known: Sequence[Known], weight: float, factors: Factors) -> None:
    """Add the gradient of `weight` times the divergence to that of the factors."""

    def held(part: Sequence[Known]) -> Sequence[Tensor]:
        with model.updated(factors.deltas()):
            return torch.autograd.grad(weight * _drift(model, first, known, part), factors.parameters())

    for gradients in model.memory.in_parts("holding", known, held, lambda one: len(one.text.ids), backward=True):
        _add_gradients(factors, gradients)


def _drift(model: EditableModel, first: int, known: Sequence[Known], part: Sequence[Known]) -> Tensor:
    """What a part of the texts has in the mean divergence over all of them, with whatever update is in place."""
    places = sum(len(one.text.labels) for one in known)
    batch = Batch.of([one.text for one in part])
    return divergence(answer_logits(model, batch, first), part) * (len(batch.labels) / places)


def _judged(model: EditableModel, first: int, texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
    """Losses and rightness, each (B,), of texts run together with whatever update is in place."""
    batch = Batch.of(texts)
    logits = answer_logits(model, batch, first)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = batch.mean_per_text(F.cross_entropy(logits, batch.labels, reduction="none"))
    right = batch.mean_per_text((logits.detach().argmax(-1) == batch.labels).to(losses.dtype)) == 1
    return losses, right


def _add_gradients(factors: Factors, gradients: Sequence[Tensor]) -> None:
    for leaf, gradient in zip(factors.parameters(), gradients, strict=True):
        leaf.grad = gradient.contiguous() if leaf.grad is None else leaf.grad + gradient  # a slice beside a decoy


def _by_length(
    model: EditableModel,
    kind: str,
    texts: Sequence[Text],
    work: Callable[[Sequence[int]], R],
    *,
    backward: bool = False,
) -> Iterator[tuple[Sequence[int], R]]:
    """What `work` makes of texts, by their indices: those alike in length run together, as far as memory goes."""
    lengths = [len(text.ids) for text in texts]
    for group in alike_in_length(lengths):
        yield from model.memory.in_parts(
            kind, group, lambda part: (part, work(part)), lengths.__getitem__, backward=backward
        )


def _in_order(judged: Iterable[tuple[Sequence[int], tuple[Tensor, Tensor]]]) -> tuple[Tensor, Tensor]:
    """Losses and rightness of all texts, from those of parts."""
    parts, found = zip(*judged, strict=True)
    back = torch.tensor([i for part in parts for i in part]).argsort()
    losses, right = (torch.cat(values) for values in zip(*found, strict=True))
    return losses[back], right[back]


def alike_in_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in groups whose shortest is no shorter than SHORTEST of the longest: padding costs as much as text."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not groups or lengths[i] < SHORTEST * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(i)
    return groups


@torch.no_grad()
def _confirmed(
    model: EditableModel,
    first: int,
    trainees: Sequence[Trainee],
    factors: Factors,
    state: _State,
    config: TrainingConfig,
    decoys: Sequence[Mapping[str, LowRankDelta]],
) -> bool:
    """Ask every judged text anew, since the update has moved since most of them were drawn.

    Beside a decoy an answer has to be right, but may be less sure.
    """
    for part in batched(state.judged, config.batch):
        texts = [trainees[i].text for i in part]
        losses, right = answers(model, first, texts, factors.deltas())
        for decoy in decoys:
            right &= answers(model, first, texts, summed([factors.deltas(), decoy]))[1]
        state.note(part, losses, right)
    return state.done(config.stop_loss)


def _drawn_decoy(
    decoys: Sequence[Mapping[str, LowRankDelta]], generator: torch.Generator
) -> Mapping[str, LowRankDelta]:
    """One of them, or in half of the cases none."""
    if not decoys:
        return {}
    place = int(torch.randint(2 * len(decoys), (1,), generator=generator))
    return decoys[place] if place < len(decoys) else {}


@torch.no_grad()
def _shrunk(
    model: EditableModel,
    first: int,
    trainees: Sequence[Trainee],
    factors: Factors,
    state: _State,
    config: TrainingConfig,
) -> float:
    """Scale the update down to the smallest of SCALES at which no answer that was right becomes wrong or unsure.

    Found by bisection: where one scale keeps every answer, larger ones are taken to do so too.
    """
    kept = [i for i in state.judged if state.right[i]]
    scale, holds, fails = 1.0, -1, len(SCALES) if kept else 0
    while fails - holds > 1:
        middle = (holds + fails) // 2
        factors.scale(SCALES[middle] / scale)
        scale = SCALES[middle]
        seen = _kept(model, first, trainees, factors, kept, config)
        if seen is None:
            fails = middle
        else:
            holds = middle
            for part, losses, right in seen:
                state.note(part, losses, right)
    found = SCALES[holds] if holds >= 0 else 1.0
    factors.scale(found / scale)
    return found


def _kept(
    model: EditableModel,
    first: int,
    trainees: Sequence[Trainee],
    factors: Factors,
    kept: Sequence[int],
    config: TrainingConfig,
) -> list[tuple[Sequence[int], Tensor, Tensor]] | None:
    """Losses and rightness of these answers, by parts; None as soon as one is wrong or unsure."""
    seen: list[tuple[Sequence[int], Tensor, Tensor]] = []
    for part in batched(kept, SHRINK_BATCH):
        losses, right = answers(model, first, [trainees[i].text for i in part], factors.deltas())
        if not right.all() or losses.max() > SHRINK_LOSS * config.stop_loss:
            return None
        seen.append((part, losses, right))
    return seen


def _digest(
    trainees: Sequence[Trainee],
    teacher: Teacher,
    factors: Factors,
    config: TrainingConfig,
    seed: int,
    decoys: Sequence[Mapping[str, LowRankDelta]],
) -> str:
    """Of all that a run depends on beside the base."""
    digest = hashlib.sha256(json.dumps([config.to_json(), seed]).encode())
    for trainee in trainees:
        digest.update(f"{trainee.text.ids.tolist()} {trainee.text.start} {trainee.judged} {trainee.weight}".encode())
    for encoded in teacher.encoded:
        digest.update(f"{encoded.ids} {encoded.answer_start}".encode())
    for deltas in (factors.deltas(), *decoys):
        for name, delta in deltas.items():
            digest.update(name.encode())
            for factor in (delta.B, delta.A):
                digest.update(factor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _snapshot(
    step: int, optimiser: torch.optim.Optimizer, generator: torch.Generator, state: _State
) -> dict[str, Tensor]:
    """All that the next step depends on."""
    tensors = {
        "step": torch.tensor(step),
        "generator": generator.get_state(),
        "losses": torch.tensor(state.losses, dtype=torch.float64),
        "right": torch.tensor(state.right),
    }
    for i, leaf in enumerate(optimiser.param_groups[0]["params"]):
        tensors[f"{i}.leaf"] = leaf.detach()
        tensors |= {f"{i}.{name}": value for name, value in optimiser.state[leaf].items()}
    return tensors


@torch.no_grad()
def _resumed(
    kept: Mapping[str, Tensor] | None,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    state: _State,
) -> int:
    """Put a snapshot back; the step that it was taken after, 0 without one."""
    if kept is None:
        return 0
    generator.set_state(kept["generator"])
    state.losses, state.right = kept["losses"].tolist(), kept["right"].tolist()
    for i, leaf in enumerate(optimiser.param_groups[0]["params"]):
        mine = {name.partition(".")[2]: value for name, value in kept.items() if name.startswith(f"{i}.")}
        leaf.copy_(mine.pop("leaf"))
        optimiser.state[leaf] = {name: value.to(leaf.device if value.ndim else "cpu") for name, value in mine.items()}
    return int(kept["step"])
