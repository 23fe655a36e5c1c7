"""Training an update on the answers it is to give, until the model gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from hf_edit.methods.base import Checkpoints
from hf_edit.methods.training.answering import answers, by_length, in_order, losses_of
from hf_edit.methods.training.course import Course, Trained
from hf_edit.methods.training.ending import confirmed, shrunk
from hf_edit.methods.training.factors import Factors
from hf_edit.methods.training.state import State, digest_of, resumed, snapshot
from hf_edit.methods.training.teacher import Known, divergence
from hf_edit.methods.training.texts import Batch, answer_logits
from hf_edit.models.editable import check_finite
from hf_edit.progress import Progress
from hf_edit.solvers.low_rank import LowRankDelta, summed


WARM_UP = 5
SLOW_BELOW = 0.3
"""Mean loss below which steps get shorter, with its root: at full length they would jump about the end."""
KEPT_EVERY = 10


def train(course: Course, factors: Factors, checkpoints: Checkpoints, progress: Progress) -> Trained:
    """Adam on the factors: the drawn answers' mean loss * (1 + size_weight * size) + drift_weight * KL to the base.

    Once the answers' mean loss is below the stopping loss, part of each is the mean over those tokens alone that are
    still not clearly the likeliest (`focus`), and texts of which some are wrong are drawn more often: one token of a
    hundred would else weigh a hundredth, and all others would grow surer than they need to be meanwhile.

    The size counts as a share of the loss, and no gradient goes through that share. The gradient of the loss vanishes
    with the loss; a weight of its own would decide at which loss training comes to rest, the sooner the more edits.

    It ends when every answer is right and sure, when the steps are used up, or when it has long come no further. An
    answer may be right by less than bfloat16 rounds; then training goes on a little, for it to become clear.

    Args:
        checkpoints: a killed run goes on from the last one kept there, to the same bits.
    """
    config, trainees = course.config, course.trainees
    generator = torch.Generator().manual_seed(course.seed)
    state = State(course.judged, course.weights)
    step_size, size_weight = config.step_size(len(state.judged)), config.size_share(len(state.judged))
    optimiser = torch.optim.Adam(factors.parameters(), lr=step_size, betas=(0.9, 0.99))
    drawn_at_once = course.drawn_at_once
    budget = round(config.max_steps * len(trainees) / drawn_at_once)
    progress.stage("training", budget)
    key = digest_of(course, factors)
    rested = False
    step = resumed(checkpoints.load(key), optimiser, generator, state)
    progress.step(step)
    while step < budget and not rested:
        step += 1
        optimiser.zero_grad()
        drawn = torch.multinomial(state.chances(config.stop_loss), drawn_at_once, generator=generator).tolist()
        beside = _drawn_decoy(course.decoys, generator)
        weights = torch.tensor([trainees[i].weight for i in drawn], dtype=torch.float64)
        weights /= weights.sum()
        focus = config.focus if state.ending(config.stop_loss) else 0.0
        losses, margins = _descended(course, drawn, weights, focus, factors, beside)
        check_finite(losses, f"The loss of step {step}")
        state.note(drawn, losses, margins)
        (size_weight * (weights.to(losses) @ losses) * factors.size()).backward()
        known = course.teacher.drawn(course.held_at_once, generator) if config.drift_weight else []
        _held(course, known, factors)
        for group in optimiser.param_groups:
            calm = min(1.0, step / WARM_UP, (state.mean_loss() / SLOW_BELOW) ** 0.5)
            group["lr"] = step_size * state.pace * calm
        optimiser.step()
        progress.step(loss=state.mean_loss())
        if state.asks(step, drawn_at_once, config.stop_loss):
            if confirmed(course, factors, state) and state.enough(step):
                break
            state.asked(step)
        rested = state.rests(step, drawn_at_once, float(factors.size().detach()))
        if step % KEPT_EVERY == 0 and not rested:  # which a snapshot does not say: the end is found again
            checkpoints.save(key, snapshot(step, optimiser, generator, state))
    else:
        confirmed(course, factors, state)
    scale = shrunk(course, factors, state) if config.shrink else 1.0
    return Trained(step, [state.losses[i] for i in state.judged], [*map(state.right, state.judged)], scale, rested)


@torch.no_grad()
def objective(course: Course, factors: Factors) -> float:
    """What `train` makes small, over all trainees and as many conversations as one step of `train` sees."""
    config = course.config
    losses, _ = answers(course.model, course.first, course.texts, factors.deltas())
    weights = torch.tensor(course.weights, dtype=torch.float64, device=losses.device)
    loss = float(weights @ losses.double() / weights.sum()) * (
        1 + config.size_share(len(course.judged)) * float(factors.size())
    )
    if not config.drift_weight:
        return loss
    known = course.teacher.drawn(course.held_at_once, torch.Generator().manual_seed(course.seed))
    with course.model.updated(factors.deltas()):
        parts = course.model.memory.in_parts(
            "judging", known, partial(_drift, course, known), lambda one: len(one.text.ids)
        )
        return loss + config.drift_weight * float(sum(parts))


def _descended(
    course: Course,
    drawn: Sequence[int],
    weights: Tensor,
    focus: float,
    factors: Factors,
    beside: Mapping[str, LowRankDelta],
) -> tuple[Tensor, Tensor]:
    """As `answers`, of the trainees drawn; their losses' gradient times `weights` (B,) is added to the factors'.

    Args:
        focus: share of each loss that is the mean over what is wrong.
        beside: another update that is in place.
    """
    model, texts = course.model, [course.trainees[i].text for i in drawn]

    def descended(part: Sequence[int]) -> tuple[tuple[Tensor, Tensor], Sequence[Tensor]]:
        with model.updated(summed([factors.deltas(), beside])):
            losses, margins, hard = losses_of(model, course.first, [texts[i] for i in part])
            weighed = weights[list(part)].to(losses) @ torch.lerp(losses, hard, focus)
            return (losses.detach(), margins), torch.autograd.grad(weighed, factors.parameters())

    found = []
    for part, (judged, gradients) in by_length(model, "training", texts, descended, backward=True):
        _add_gradients(factors, gradients)
        found.append((part, judged))
    return in_order(found)


def _held(course: Course, known: Sequence[Known], factors: Factors) -> None:
    """Add the gradient of the weighed divergence from what is known of the base to that of the factors."""

    def held(part: Sequence[Known]) -> Sequence[Tensor]:
        with course.model.updated(factors.deltas()):
            return torch.autograd.grad(course.config.drift_weight * _drift(course, known, part), factors.parameters())

    for gradients in course.model.memory.in_parts(
        "holding", known, held, lambda one: len(one.text.ids), backward=True
    ):
        _add_gradients(factors, gradients)


def _drift(course: Course, known: Sequence[Known], part: Sequence[Known]) -> Tensor:
    """What a part of the texts has in the mean divergence over all of them, with whatever update is in place."""
    places = sum(len(one.text.labels) for one in known)
    batch = Batch.of([one.text for one in part])
    return divergence(answer_logits(course.model, batch, course.first), part) * (len(batch.labels) / places)


def _add_gradients(factors: Factors, gradients: Sequence[Tensor]) -> None:
    for leaf, gradient in zip(factors.parameters(), gradients, strict=True):
        leaf.grad = gradient.contiguous() if leaf.grad is None else leaf.grad + gradient  # a slice beside a decoy


def _drawn_decoy(
    decoys: Sequence[Mapping[str, LowRankDelta]], generator: torch.Generator
) -> Mapping[str, LowRankDelta]:
    """One of them, or in half of the cases none."""
    if not decoys:
        return {}
    place = int(torch.randint(2 * len(decoys), (1,), generator=generator))
    return decoys[place] if place < len(decoys) else {}
