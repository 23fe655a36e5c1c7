"""Whether training is done, and what can be taken back of a finished update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_edit.batching import batched
from hf_edit.methods.training.answering import answers
from hf_edit.methods.training.course import Course
from hf_edit.methods.training.factors import Factors
from hf_edit.methods.training.state import State
from hf_edit.solvers.low_rank import LowRankDelta, summed


UNSURE_LOSS = 2.0
"""In units of the stopping loss: what the answers' mean loss may be when all are asked again, as what was seen of them
last was seen at other times, and what an answer's may become by scaling the update down."""
SCALES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
SHRINK_BATCH = 8


@torch.no_grad()
def confirmed(course: Course, factors: Factors, state: State) -> bool:
    """Ask every judged text anew, since the update has moved since most of them were drawn.

    Beside a decoy an answer has to be right, but may be less sure.
    """
    for part in batched(state.judged, course.config.batch):
        losses, right = _asked(course, part, factors.deltas())
        for decoy in course.decoys:
            right &= _asked(course, part, summed([factors.deltas(), decoy]))[1]
        state.note(part, losses, right)
    return state.done(UNSURE_LOSS * course.config.stop_loss)


@torch.no_grad()
def shrunk(course: Course, factors: Factors, state: State) -> float:
    """Scale the update down to the smallest of SCALES at which no answer that was right becomes wrong or unsure.

    The last scale is tried first, which a few edits mostly bear; then it is found by bisection: where one scale keeps
    every answer, larger ones are taken to do so too.
    """
    judged = sorted((i for i in state.judged if state.right[i]), key=lambda i: -state.losses[i])  # likely ends first
    scale, holds, fails = 1.0, -1, len(SCALES) if judged else 0
    middle = len(SCALES) - 1
    while fails - holds > 1:
        factors.scale(SCALES[middle] / scale)
        scale = SCALES[middle]
        seen = _kept(course, factors, judged)
        if seen is None:
            fails = middle
        else:
            holds = middle
            for part, losses, right in seen:
                state.note(part, losses, right)
        middle = (holds + fails) // 2
    found = SCALES[holds] if holds >= 0 else 1.0
    factors.scale(found / scale)
    return found


def _kept(
    course: Course, factors: Factors, judged: Sequence[int]
) -> list[tuple[Sequence[int], Tensor, Tensor]] | None:
    """Losses and rightness of these answers, by parts; None as soon as one is wrong or unsure."""
    seen: list[tuple[Sequence[int], Tensor, Tensor]] = []
    for part in batched(judged, SHRINK_BATCH):
        losses, right = _asked(course, part, factors.deltas())
        if not right.all() or losses.max() > UNSURE_LOSS * course.config.stop_loss:
            return None
        seen.append((part, losses, right))
    return seen


def _asked(course: Course, trainees: Sequence[int], deltas: Mapping[str, LowRankDelta]) -> tuple[Tensor, Tensor]:
    """Losses and rightness of these trainees, with updates in place."""
    return answers(course.model, course.first, [course.trainees[i].text for i in trainees], deltas)
