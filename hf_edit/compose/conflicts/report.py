"""What a comparison of packs found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from hf_edit.errors import ComposeError


CONFLICTS = ("question", "paraphrase", "fact", "interference")
"""Kinds of findings that say that two packs cannot both have their way."""
OTHERS = ("duplicate", "keys")
"""Kinds of findings worth knowing that are none."""


@dataclass(frozen=True, order=True)
class EditName:
    """An edit of a pack: the pack's place among those compared, from 0, its name, and the edit's id."""

    pack: int
    name: str
    id: str


@dataclass(frozen=True)
class Finding:
    """Two edits of different packs that have to do with each other.

    Args:
        kind: `question`: the same question, another answer; `paraphrase`: in other words; `fact`: the same, and both
            name the same subject; `interference`: measured, the first edit is lost where the second one's pack is
            attached too; `duplicate`: the same question, answered alike; `keys`: nearly the same inputs of the
            changed layers.
        first, second: the edits.
        score: 0 to 1: likeness of the questions; share of the answer's probability per token that is lost; cosine.
        explanation: for people.
    """

    kind: str
    first: EditName
    second: EditName
    score: float
    explanation: str

    @property
    def conflict(self) -> bool:
        """Whether it is a conflict: duplicates and alike keys are none."""
        return self.kind in CONFLICTS

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return {**asdict(self), "score": round(self.score, 6), "conflict": self.conflict}


@dataclass(frozen=True)
class RangeOverlap:
    """What the factors alone tell of two packs in one module.

    Args:
        first, second: places of the packs.
        shared: share of the smaller one's input directions that the other one reads too: the mean of the squared
            cosines of the principal angles between the ranges of their right factors, 0 to 1.
        chance: what random directions of these ranks would share on average.
        crosstalk: how large the change is that the second pack makes along the first one's directions, relative to
            the first one's own change there (Frobenius norms); then the reverse.
    """

    module: str
    first: int
    second: int
    shared: float
    chance: float
    crosstalk: tuple[float, float]


@dataclass(frozen=True)
class KeyOverlap:
    """How alike the inputs of one module are for the questions of two packs, on the base.

    Args:
        first, second: places of the packs.
        last: mean and largest cosine between inputs at the prompts' last tokens.
        content: the same between means over the questions' content words.
        crosstalk: how large a change the second pack makes at the last prompt tokens of the first one's edits,
            relative to the first one's own, in the mean; then the reverse. None where a pack leaves the module alone.
    """

    module: str
    first: int
    second: int
    last: tuple[float, float]
    content: tuple[float, float]
    crosstalk: tuple[float, float] | None


@dataclass(frozen=True)
class Answered:
    """What an edit's question got.

    Args:
        right: whether the answer is the target.
        loss: mean negative log likelihood of the target's tokens, teacher-forced.
        answer: greedy, to its natural stop.
    """

    right: bool
    loss: float
    answer: str


@dataclass(frozen=True)
class EditOutcome:
    """One edit asked with its pack alone and with others attached too.

    Args:
        edit: which.
        alone: what it gets with its pack alone.
        beside: place of each other pack -> the same with that pack attached too.
        together: with all packs attached.
    """

    edit: EditName
    alone: Answered
    beside: Mapping[int, Answered]
    together: Answered


@dataclass(frozen=True)
class Interference:
    """What packs do to each other's edits.

    Args:
        kept: kept[i][j]: of pack i's edits that are right alone, the share that stays right with pack j attached too;
            kept[i][i]: the share of its edits that is right alone. None where no edit is right alone.
        kept_together: per pack, the share that stays right with all packs attached.
        edits: every edit, pack by pack.
    """

    kept: tuple[tuple[float | None, ...], ...]
    kept_together: tuple[float | None, ...]
    edits: tuple[EditOutcome, ...]


@dataclass(frozen=True, eq=False)
class ConflictReport:
    """All that was found between packs.

    Args:
        packs: their names.
        findings: conflicts first, then by score.
        ranges: per module and pair of packs, from the factors.
        keys: per module and pair of packs, from the base's inputs; empty without a model.
        edits: all of them, pack by pack.
        cosines: between the edits' content keys, mean over the modules, (edits, edits); None without a model.
        interference: measured on the model; None without one.
    """

    packs: tuple[str, ...]
    findings: tuple[Finding, ...]
    ranges: tuple[RangeOverlap, ...]
    edits: tuple[EditName, ...]
    keys: tuple[KeyOverlap, ...] = ()
    cosines: Tensor | None = None
    interference: Interference | None = None

    @property
    def conflicts(self) -> tuple[Finding, ...]:
        """The findings that are conflicts."""
        return tuple(finding for finding in self.findings if finding.conflict)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values; the cosines between single edits are left to the picture and the findings."""
        return {
            "packs": list(self.packs),
            "conflicts": len(self.conflicts),
            "findings": [finding.to_json() for finding in self.findings],
            "ranges": [asdict(overlap) for overlap in self.ranges],
            "keys": [asdict(overlap) for overlap in self.keys],
            "interference": None if self.interference is None else asdict(self.interference),
        }

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draw heat maps into a PNG: what the packs share, and where a model was at hand how they get on.

        Raises:
            ConfigError: matplotlib is not installed.
            OSError: the file cannot be written.
        """
        from hf_edit.compose.conflicts.picture import draw_report

        draw_report(self, path)


def names_of(count: int, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """The packs' names, all different: those given, else `pack 1`, `pack 2`, ...

    Raises:
        ComposeError: as many names as packs are not given.
    """
    if names is not None and len(names) != count:
        raise ComposeError(f"There are {len(names)} names for {count} packs.", "Give one of each, or none.")
    given = tuple(names) if names is not None else tuple(f"pack {i + 1}" for i in range(count))
    return tuple(name if given.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(given))
