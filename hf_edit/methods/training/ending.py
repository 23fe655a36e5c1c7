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
from hf_edit.models.generation import MARGIN
from hf_edit.solvers.low_rank import summed


UNSURE_LOSS = 2.0
"""In units of the stopping loss: what the answers' mean loss may be when all are asked again, as what was seen of them
last was seen at other times, and what an answer's may become by scaling the update down."""
SCALES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
SHRINK_BATCH = 8


@torch.no_grad()
def confirmed(course: Course, factors: Factors, state: State) -> bool:
    """Ask every judged text anew, since the update has moved since most of them were drawn."""
    for part in batched(state.judged, course.config.batch):
        state.note(part, *_asked(course, part, factors))
    return state.done(UNSURE_LOSS * course.config.stop_loss)


@torch.no_grad()
def shrunk(course: Course, factors: Factors, state: State) -> float:
    """Scale the update down to the smallest of SCALES at which no answer that was right becomes wrong or unsure.

    Nor may one come so near to being wrong that the rounding of another dtype could make it so, unless it was before:
    what is trained in float32 is served in bfloat16.

    The last scale is tried first, which a few edits mostly bear; then it is found by bisection: where one scale keeps
    every answer, larger ones are taken to do so too. What was wrong has no say, and is asked again in the end.
    """
    right = sorted(filter(state.right, state.judged), key=lambda i: -state.losses[i])  # likely ends first
    least = {i: MARGIN if state.margins[i] >= MARGIN else 0.0 for i in right}
    scale, holds, fails = 1.0, -1, len(SCALES) if right else 0
    middle = len(SCALES) - 1
    while fails - holds > 1:
        factors.scale(SCALES[middle] / scale)
        scale = SCALES[middle]
        seen = _kept(course, factors, least)
        if seen is None:
            fails = middle
        else:
            holds = middle
            for noted in seen:
                state.note(*noted)
        middle = (holds + fails) // 2
    found = SCALES[holds] if holds >= 0 else 1.0
    factors.scale(found / scale)
    if found < 1.0:
        for part in batched([i for i in state.judged if i not in least], SHRINK_BATCH):
            state.note(part, *_asked(course, part, factors))
    return found


def _kept(
    course: Course, factors: Factors, least: Mapping[int, float]
) -> list[tuple[Sequence[int], Tensor, Tensor]] | None:
    """Losses and margins of these answers, by parts; None as soon as one is wrong or unsure.

    Args:
        least: trainee -> what its margin must exceed.
    """
    seen: list[tuple[Sequence[int], Tensor, Tensor]] = []
    for part in batched([*least], SHRINK_BATCH):
        losses, margins = _asked(course, part, factors)
        kept = margins > margins.new_tensor([least[i] for i in part])
        if not kept.all() or losses.max() > UNSURE_LOSS * course.config.stop_loss:
            return None
        seen.append((part, losses, margins))
    return seen


def _asked(course: Course, trainees: Sequence[int], factors: Factors) -> tuple[Tensor, Tensor]:
    """Losses of these trainees, and their margins, the least of those beside each decoy too; less sure there they may
    be."""
    texts, own = [course.trainees[i].text for i in trainees], factors.deltas()
    losses, margins = answers(course.model, course.first, texts, own)
    for decoy in course.decoys:
        margins = torch.minimum(margins, answers(course.model, course.first, texts, summed([own, decoy]))[1])
    return losses, margins
