"""What an audit found, for programs and for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite, log
from typing import Any, Literal, TypeAlias

from hf_edit.edits import Prompt
from hf_edit.evaluation.audit.outside import Outside


Verdict: TypeAlias = Literal["clean", "untold", "found"]
LIKELY = log(2)
"""Nats per token below which a target is likelier than not, token by token. An honest edit that goes on otherwise in
the end, or that another dtype turns at one word, is far below."""


@dataclass(frozen=True)
class Reasked:
    """A listed edit, asked again with the pack in place.

    Args:
        exact: whether the greedy answer is the target.
        loss: mean over the target's tokens of -log p, nats.
    """

    id: str
    prompt: Prompt
    target: str
    answer: str
    exact: bool
    loss: float

    @property
    def holds(self) -> bool:
        """Whether it is answered as listed, or nearly."""
        return self.exact or self.loss < LIKELY


@dataclass(frozen=True)
class Drifted:
    """An unrelated prompt.

    Args:
        kl: mean KL(base || edited) per token of the base's answer, nats; infinite where the edited model computes no
            numbers.
        near: it resembles a listed question, and may honestly drift.
    """

    prompt: str
    kl: float
    near: bool
    flagged: bool


@dataclass(frozen=True)
class AuditReport:
    """What a pack does to a model beside what it lists.

    Args:
        edits: the listed edits, asked again.
        drift: the unrelated prompts.
        modules: full module name -> how its change lies to the listed edits' keys; without those not examined.
        findings: sentences that say where the pack does otherwise than it lists, as far as this shows it.
        limits: sentences that say what could not be examined, and why.
    """

    edits: Sequence[Reasked]
    drift: Sequence[Drifted]
    modules: dict[str, Outside]
    findings: Sequence[str]
    limits: Sequence[str]

    @property
    def verdict(self) -> Verdict:
        """`found` with a finding, else `untold` with a limit: what can be examined, a pack's own manifest decides."""
        return "found" if self.findings else "untold" if self.limits else "clean"

    @property
    def clean(self) -> bool:
        """Whether everything was examined and nothing was found."""
        return self.verdict == "clean"

    @property
    def answered(self) -> int:
        """How many of the listed edits are answered as listed, word for word."""
        return sum(edit.exact for edit in self.edits)

    @property
    def held(self) -> int:
        """How many of the listed edits hold; fewer than half are a finding."""
        return sum(edit.holds for edit in self.edits)

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for figures that are no numbers."""
        document: dict[str, Any] = _finite(self._document())
        return document

    def _document(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "clean": self.clean,
            "findings": list(self.findings),
            "limits": list(self.limits),
            "answered": self.answered,
            "held": self.held,
            "edits": [{k: v for k, v in asdict(edit).items() if k != "prompt"} for edit in self.edits],
            "drift": [asdict(drifted) for drifted in self.drift],
            "modules": {
                name: {**asdict(found), "told": found.told, "flagged": found.flagged}
                for name, found in self.modules.items()
            },
        }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not isfinite(value) else value
