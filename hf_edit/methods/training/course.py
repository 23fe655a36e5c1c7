"""What an update is trained for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_edit.methods.training.config import TrainingConfig
from hf_edit.methods.training.teacher import Teacher
from hf_edit.methods.training.texts import Text
from hf_edit.models.editable import EditableModel
from hf_edit.solvers.low_rank import LowRankDelta


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
class Course:
    """All that decides an update but the factors that training begins with.

    Args:
        first: the lowest edited block, which the texts enter.
        teacher: of the texts whose answers are to stay.
        seed: of what is drawn.
        decoys: other updates of the same model; one of them stands beside the trained one in every other step, and
            answers must come right beside each, too.
    """

    model: EditableModel
    first: int
    trainees: Sequence[Trainee]
    teacher: Teacher
    config: TrainingConfig
    seed: int
    decoys: Sequence[Mapping[str, LowRankDelta]] = ()

    @property
    def texts(self) -> list[Text]:
        """Of the trainees, in order."""
        return [trainee.text for trainee in self.trainees]

    @property
    def weights(self) -> list[float]:
        """Of the trainees' losses, in order."""
        return [trainee.weight for trainee in self.trainees]

    @property
    def judged(self) -> list[int]:
        """Indices of the trainees that must be right."""
        return [i for i, trainee in enumerate(self.trainees) if trainee.judged]

    @property
    def drawn_at_once(self) -> int:
        """Trainees of one step."""
        return min(self.config.batch, 2 * len(self.judged), len(self.trainees))

    @property
    def held_at_once(self) -> int:
        """Conversations of one step."""
        return max(1, round(self.config.drift_share * self.drawn_at_once))


@dataclass(frozen=True, eq=False)
class Trained:
    """The outcome.

    Args:
        steps: taken.
        losses: per judged trainee, in order, the mean negative log likelihood per answer token.
        right: per judged trainee, whether every token of the answer is the likeliest, which greedy decoding says.
        scale: what the update was scaled down by at the end.
        rested: it ended because it came no further.
    """

    steps: int
    losses: list[float]
    right: list[bool]
    scale: float
    rested: bool = False
