"""What an evaluator is: questions put to a model as it stands, and then to the same model with an edit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar, TypeAlias

from hf_edit.errors import ConfigError
from hf_edit.evaluation.subject import Answer, Subject, Task
from hf_edit.packs.evaluation import FREE, Figure


Records: TypeAlias = Sequence[float] | Sequence[Sequence[float]]


@dataclass(frozen=True)
class About:
    """What a metric says, whatever the model.

    Args:
        compared: one sentence: what was compared with what, over which records.
        protocol: one of `hf_edit.packs.evaluation.PROTOCOLS`.
        statistic: of the records; one of `hf_edit.evaluation.intervals.STATISTICS`.
    """

    compared: str
    protocol: str = FREE
    higher_is_better: bool = True
    statistic: str = "mean"


@dataclass(frozen=True)
class Observed:
    """What one model did.

    Args:
        scores: metric -> one number (or row) for each record; a figure where somebody else made it.
        kept: what the look at the edited model compares with.
        about: what metrics say that the evaluator did not know beforehand.
    """

    scores: Mapping[str, Records | Figure]
    kept: Any = field(default=None, repr=False)
    about: Mapping[str, About] = field(default_factory=dict)


class Evaluator(ABC):
    """Asks a model, and scores what it says.

    To add one: derive, and put an instance into `EVALUATORS` under its name.
    """

    name: ClassVar[str]
    metrics: ClassVar[Mapping[str, About]]
    needs: ClassVar[str]
    """What a task must have for it, for errors."""
    compares: ClassVar[bool] = False
    """Whether all metrics are distances from the model without the edit, so that it says nothing of one model."""
    by_default: ClassVar[bool] = True
    """Whether it runs where no evaluators are named."""

    @abstractmethod
    def applies(self, task: Task) -> bool:
        """Whether there is something to ask."""

    @abstractmethod
    def observe(self, subject: Subject, before: Observed | None) -> Observed:
        """Look at one model.

        Args:
            before: what was observed of the model without the edit; None while that is looked at. Metrics that are
                distances from it have scores only then.
        """

    def check(self, task: Task) -> None:
        """Raise a ConfigError if this cannot be evaluated; called before anything is asked."""
        if not self.applies(task):
            raise ConfigError(f"Nothing to ask for the evaluator {self.name!r}.", f"It needs {self.needs}.")


def averaged(answers: Iterable[Answer], score: Callable[[Answer], Mapping[str, float]]) -> dict[str, float]:
    """The mean of each score over answers."""
    rows = [score(answer) for answer in answers]
    return {name: fmean(row[name] for row in rows) for name in rows[0]}


def columns(rows: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """Rows of named scores as one list for each name."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found
