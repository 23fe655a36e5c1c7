"""Measured figures of a model before and after an edit, as data: evaluation.json of a pack.

`hf_edit.evaluation` measures; a pack only carries what was found, and says which factors it was found on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hf_edit.errors import PackError
from hf_edit.files import strict_json
from hf_edit.packs.manifest import sha256
from hf_edit.solvers.low_rank import LowRankDelta


FORMAT_VERSION = 1
FREE, FORCED, FIXED = "free generation", "teacher-forced", "fixed text"
PROTOCOLS = (FREE, FORCED, FIXED)
"""The model writes on its own; the right answer is fed to it token by token; text that nobody chose is scored."""

_NAME = "evaluation.json"
_REMEDY = "Evaluate the pack again, or get it anew from where it was published."
_PLAIN = re.compile(r"\w+(\.\w+)*", re.ASCII)


@dataclass(frozen=True)
class Figure:
    """What was found of one model.

    Args:
        value: of the metric's statistic over all records.
        low, high: its 95 % interval; None of fewer than two records, or where it is not known.
        n: records: edits or questions.
        values: one for each record, in their order; empty where the figure is not made of one number for each.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Metric:
    """One thing measured, before and after.

    Args:
        name: `evaluator.metric`.
        protocol: one of `PROTOCOLS`; figures of different protocols do not compare.
        compared: one sentence that says what was compared with what.
        statistic: what the figures are of the records' values: `mean`, `exp_mean`, `harmonic_mean`.
        before: of the model as it was; None where the metric is a distance from it.
        after: with the edit; None where there was none.
    """

    name: str
    protocol: str
    compared: str
    higher_is_better: bool
    statistic: str
    before: Figure | None
    after: Figure | None

    @property
    def figure(self) -> Figure:
        """The one that counts: after the edit, or of the model as it stands."""
        figure = self.after or self.before
        assert figure is not None
        return figure


@dataclass(frozen=True)
class Generation:
    """A question with its answers, verbatim.

    Args:
        kind: of question, such as `prompt`, `paraphrase`, `unrelated`.
        edit: id of the edit that it belongs to, if to one.
        prompt: text, or messages as JSON.
        accepted: answers that count as right; empty where none is known.
        after: None where there was no edit.
    """

    kind: str
    edit: str | None
    prompt: Any
    accepted: tuple[str, ...]
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Evaluation:
    """Figures with all that is needed to know what they mean.

    Args:
        pack: `factors_digest` of the pack that was measured; None of a model as it stands.
        metrics: by name, in the order of the evaluators.
        generations: every question that was answered freely.
        protocol: how questions were put and answers taken.
        environment: versions, dtype, device, seed, the base's fingerprint.
        seconds: of the base and of the edited model; empty in a pack, whose bytes do not depend on the clock.
    """

    pack: str | None
    metrics: tuple[Metric, ...]
    generations: tuple[Generation, ...]
    protocol: Mapping[str, Any]
    environment: Mapping[str, Any]
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Metric:
        """The metric of that name; KeyError if it was not measured."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(name)

    def timeless(self) -> Evaluation:
        """The same without seconds."""
        return replace(self, seconds={})

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads back."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], name: str = _NAME) -> Evaluation:
        """Read and validate.

        Args:
            name: of the file, for messages.

        Raises:
            PackError: a newer format, a field missing, of the wrong type or out of range.
        """
        version = value.get("format_version")
        if type(version) is not int or version < 1:
            raise PackError(f"{name}: format_version is {version!r}, not a positive integer.", _REMEDY)
        if version > FORMAT_VERSION:
            raise PackError(
                f"{name} has format version {version}; this hf_edit reads up to version {FORMAT_VERSION}.",
                "It was written by a newer hf_edit; upgrade: pip install -U hf-edit",
            )
        evaluation = strict_json.parse(cls, dict(value), name)
        evaluation.check(name)
        return evaluation

    def check(self, name: str = _NAME) -> None:
        """Raise a PackError for what types alone do not forbid."""

        def require(condition: bool, problem: str) -> None:
            if not condition:
                raise PackError(f"{name}: {problem}.", _REMEDY)

        names = [metric.name for metric in self.metrics]
        require(len(set(names)) == len(names), "a metric stands twice")
        for metric in self.metrics:
            require(_PLAIN.fullmatch(metric.name) is not None, f"{metric.name!r} is not the name of a metric")
            require(metric.protocol in PROTOCOLS, f"{metric.name}: protocol is {metric.protocol!r}")
            require(bool(metric.before or metric.after), f"{metric.name} has no figure")
            for figure in filter(None, (metric.before, metric.after)):
                require(figure.n >= 1, f"{metric.name}: n is {figure.n}, below 1")
                require(
                    len(figure.values) in (0, figure.n), f"{metric.name}: {len(figure.values)} values of {figure.n}"
                )
                require((figure.low is None) == (figure.high is None), f"{metric.name}: the interval has one end")
        for generation in self.generations:
            require(isinstance(generation.prompt, (str, list)), f"{generation.prompt!r} is no prompt")


def factors_digest(deltas: Mapping[str, LowRankDelta]) -> str:
    """sha256 of the very factors that were measured, in fp32: figures hold for no others."""
    parts = [
        f"{name} {tuple(factor.shape)} {sha256(factor.float().contiguous().cpu().numpy().astype('<f4').tobytes())}"
        for name, delta in sorted(deltas.items())
        for factor in (delta.B, delta.A)
    ]
    return sha256("\n".join(parts).encode())
