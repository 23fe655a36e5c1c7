"""What a training has come to: in memory, and as a snapshot that it goes on from to the same bits."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_edit.methods.training.course import Course
from hf_edit.methods.training.factors import Factors
from hf_edit.models.generation import MARGIN


FORGOTTEN = 0.005
"""A text whose loss is below this is drawn as if it were this: nothing is never looked at again."""
WRONG = 10.0
"""How much likelier a judged text that is wrong is drawn once the mean loss is below the stopping loss."""
UNSEEN = 100.0
"""The loss of a text that was not drawn yet."""
FALL = 0.95
"""Mean losses above this share of the lowest one so far are no progress, nor are sizes above it of the smallest."""
PATIENCE_PASSES, PATIENCE_STEPS = 6, 30
"""Without progress for so many passes over the texts, and so many steps, training has come to rest."""
LONGER = 0.25
"""How many more steps, as a share of those so far, training takes once every answer is right and not yet clear."""
ENDING_PASSES, ENDING_STEPS = 0.5, 12
"""Once the mean loss is below the stopping loss, all are asked again after so many passes, and so many steps."""
COURSE = ("lowest", "smallest", "most", "advanced_at", "pace", "held", "asked_at", "latest")
"""What a state says of how it went."""


class State:
    """What was last seen of each trainee, and how it went since.

    `pace` is what steps are shortened by. With many texts, those that were right when last seen may no longer be, as
    steps for others jump about the end. In the end all are therefore asked again from time to time, and steps become
    half as long each time that no more are right than before.
    """

    def __init__(self, judged: Sequence[int], weights: Sequence[float]) -> None:
        self.judged, self.weights = judged, weights
        self.losses = [UNSEEN] * len(weights)
        self.margins = [0.0] * len(weights)
        self.lowest, self.smallest, self.most, self.advanced_at = UNSEEN, math.inf, 0, 0
        self.pace, self.held, self.asked_at, self.latest = 1.0, 0, 0, math.inf

    def note(self, drawn: Sequence[int], losses: Tensor, margins: Tensor) -> None:
        for i, loss, margin in zip(drawn, losses.tolist(), margins.tolist(), strict=True):
            self.losses[i], self.margins[i] = loss, margin

    def right(self, i: int) -> bool:
        """Whether each token of an answer was the likeliest when last seen."""
        return self.margins[i] > 0

    def chances(self, stop_loss: float) -> Tensor:
        """In proportion to which the trainees are drawn: by their losses, and in the end by what is wrong."""
        chances = torch.tensor([w * max(loss, FORGOTTEN) for w, loss in zip(self.weights, self.losses, strict=True)])
        if self.ending(stop_loss):
            chances[[i for i in self.judged if not self.right(i)]] *= WRONG
        return chances

    def mean_loss(self) -> float:
        """Of the judged ones that were seen; UNSEEN as long as none was."""
        seen = [self.losses[i] for i in self.judged if self.losses[i] < UNSEEN]
        return sum(seen) / len(seen) if seen else UNSEEN

    def right_now(self) -> int:
        """How many of the judged ones were right when last seen."""
        return sum(map(self.right, self.judged))

    def ending(self, stop_loss: float) -> bool:
        """Whether only what is wrong is left to learn."""
        return self.mean_loss() < stop_loss

    def rests(self, step: int, drawn_at_once: int, size: float) -> bool:
        """Whether the mean loss has long stopped falling, no more answers came right, and the update is none that was
        there and becomes smaller; to be asked at every step."""
        mean, right = self.mean_loss(), self.right_now()
        if mean < FALL * self.lowest or right > self.most or size < FALL * self.smallest:
            self.lowest, self.most, self.advanced_at = min(mean, self.lowest), max(right, self.most), step
            self.smallest = min(size, self.smallest)
        return step - self.advanced_at >= max(PATIENCE_STEPS, PATIENCE_PASSES * len(self.losses) / drawn_at_once)

    def asks(self, step: int, drawn_at_once: int, stop_loss: float) -> bool:
        """Whether all are to be asked again, as they seem done for the first time or for good, or the end is long in
        coming; for every step in turn.

        Where every step draws all of them, what is noted is not old.
        """
        if not self.ending(stop_loss) or len(self.losses) <= drawn_at_once:
            self.asked_at = step
        waited = step - self.asked_at >= max(ENDING_STEPS, ENDING_PASSES * len(self.losses) / drawn_at_once)
        for_good = self.clear() or self.latest == math.inf or step >= self.latest
        return waited or (for_good and self.done(stop_loss))

    def asked(self, step: int) -> None:
        """All were asked, and are not done."""
        right = self.right_now()
        if right <= self.held:
            self.pace /= 2
        self.held, self.asked_at = max(right, self.held), step

    def clear(self) -> bool:
        """Whether every answer is right by more than the rounding of another dtype could change."""
        return all(self.margins[i] >= MARGIN for i in self.judged)

    def enough(self, step: int) -> bool:
        """Of training that is done: whether all is clear, or has had its time to become so."""
        self.latest = min(self.latest, (1 + LONGER) * step)
        return self.clear() or step >= self.latest

    def done(self, stop_loss: float) -> bool:
        return self.right_now() == len(self.judged) and self.ending(stop_loss)


def digest_of(course: Course, factors: Factors) -> str:
    """Of all that a training depends on beside the base."""
    digest = hashlib.sha256(json.dumps([course.config.to_json(), course.seed]).encode())
    for trainee in course.trainees:
        digest.update(f"{trainee.text.ids.tolist()} {trainee.text.start} {trainee.judged} {trainee.weight}".encode())
    for encoded in course.teacher.encoded:
        digest.update(f"{encoded.ids} {encoded.answer_start}".encode())
    for deltas in (factors.deltas(), *course.decoys):
        for name, delta in deltas.items():
            digest.update(name.encode())
            for factor in (delta.B, delta.A):
                digest.update(factor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def snapshot(
    step: int, optimiser: torch.optim.Optimizer, generator: torch.Generator, state: State
) -> dict[str, Tensor]:
    """All that the next step depends on."""
    tensors = {
        "step": torch.tensor(step),
        "generator": generator.get_state(),
        "losses": torch.tensor(state.losses, dtype=torch.float64),
        "margins": torch.tensor(state.margins, dtype=torch.float64),
        "course": torch.tensor([float(getattr(state, name)) for name in COURSE], dtype=torch.float64),
    }
    for i, leaf in enumerate(optimiser.param_groups[0]["params"]):
        tensors[f"{i}.leaf"] = leaf.detach()
        tensors |= {f"{i}.{name}": value for name, value in optimiser.state[leaf].items()}
    return tensors


@torch.no_grad()
def resumed(
    kept: Mapping[str, Tensor] | None,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    state: State,
) -> int:
    """Put a snapshot back; the step that it was taken after, 0 without one."""
    if kept is None:
        return 0
    generator.set_state(kept["generator"])
    state.losses, state.margins = kept["losses"].tolist(), kept["margins"].tolist()
    for name, value in zip(COURSE, kept["course"].tolist(), strict=True):
        setattr(state, name, value)
    for i, leaf in enumerate(optimiser.param_groups[0]["params"]):
        mine = {name.partition(".")[2]: value for name, value in kept.items() if name.startswith(f"{i}.")}
        leaf.copy_(mine.pop("leaf"))
        optimiser.state[leaf] = {name: value.to(leaf.device if value.ndim else "cpu") for name, value in mine.items()}
    return int(kept["step"])
