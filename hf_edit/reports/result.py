"""bench.json as data, and which of its figures are shown first."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_edit.bench.cells import FORMAT_VERSION
from hf_edit.bench.results import RESULT
from hf_edit.errors import ConfigError, PackError
from hf_edit.files import strict_json
from hf_edit.packs.evaluation import Metric


@dataclass(frozen=True)
class Module:
    """A linear that packs change: means over the packs of a cell, norms as Frobenius norms."""

    name: str
    layer: int
    rank: float
    norm: float
    relative_norm: float


@dataclass(frozen=True)
class Packs:
    """The packs of a cell: how many, and the mean size in bytes, without and of their values."""

    count: int
    bytes: float
    bytes_of_values: float
    modules: tuple[Module, ...]


@dataclass(frozen=True)
class Point:
    """The share of edits up to this one, from the point before, that is still answered."""

    edits: int
    value: float


@dataclass(frozen=True)
class Example:
    """A question with its answers, verbatim."""

    kind: str
    prompt: Any
    accepted: tuple[str, ...]
    before: str | None
    after: str | None

    @property
    def question(self) -> str:
        """What was asked: the text, or the last message's."""
        return self.prompt if isinstance(self.prompt, str) else str(self.prompt[-1]["content"])


@dataclass(frozen=True)
class Row:
    """A cell: a method on a data set."""

    name: str
    data: str
    method: str
    together: int | None
    seed: int
    metrics: tuple[Metric, ...]
    packs: Packs | None
    retention: tuple[Point, ...]
    examples: tuple[Example, ...]
    protocol: Mapping[str, Any]
    environment: Mapping[str, Any]
    seconds: Mapping[str, float]
    peak_memory: Mapping[str, int]

    def metric(self, name: str) -> Metric | None:
        """The metric of that name, if it was measured."""
        return next((metric for metric in self.metrics if metric.name == name), None)

    @property
    def label(self) -> str:
        """The method, and how many edits it teaches at a time."""
        return self.method if self.together is None else f"{self.method} x{self.together}"


@dataclass(frozen=True)
class Refusal:
    """A cell that could not be measured, and why."""

    name: str
    refused: str


@dataclass(frozen=True)
class Result:
    """All of bench.json that is shown."""

    settings: Mapping[str, Any]
    base: Mapping[str, Any]
    cells: tuple[Row, ...]
    refused: tuple[Refusal, ...]

    @property
    def title(self) -> str:
        """What was edited."""
        return self.base.get("id") or f"a {self.base.get('model_type')} model"

    def by_data(self) -> dict[str, list[Row]]:
        """Data set -> its rows, in the order of the file."""
        found: dict[str, list[Row]] = {}
        for row in self.cells:
            found.setdefault(row.data, []).append(row)
        return found


TAUGHT = {
    "reliability.exact": "word for word",
    "reliability.contains": "holds answer",
    "paraphrase.contains": "reworded",
    "long_form.rouge_l_paraphrase": "reworded ROUGE-L",
    "portability.right": "portability",
    "multi_hop.any": "multi-hop",
    "success.score": "CounterFact score",
}
KEPT = {
    "locality.same": "locality same",
    "strangers.same": "strangers same",
    "unrelated.same": "unrelated same",
    "unrelated.kl": "unrelated KL",
    "perplexity.text": "perplexity",
}
"""Metrics of what edits bring and of what they disturb, in the order in which they are shown -> their short names."""
EFFICACY = "reliability.exact"
LOCALITIES = {
    "strangers.same": "strangers",
    "locality.same": "locality probes",
    "unrelated.same": "unrelated questions",
}
"""Off the first that was measured efficacy's price is read: strangers are where damage hides."""


def read_result(path: str | os.PathLike[str]) -> Result:
    """Read a folder of a bench, or its bench.json.

    Raises:
        ConfigError: there is none, or it is of another format.
    """
    place = Path(path)
    file = place / RESULT if place.is_dir() else place
    try:
        value = strict_json.loads(file.read_bytes(), str(file))
        if value.get("format_version") != FORMAT_VERSION:
            raise ConfigError(
                f"{file} has the format version {value.get('format_version')!r}; this hf_edit reads {FORMAT_VERSION}.",
                "Run the bench again, or use the hf_edit that wrote it.",
            )
        result = strict_json.parse(Result, value, str(file))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no {file}.", "Give the folder of a finished `hf-edit bench`.") from error
    except PackError as error:
        raise ConfigError(error.message, "Give the folder of a finished `hf-edit bench`.") from error
    for row in result.cells:
        for metric in row.metrics:
            if metric.before is None and metric.after is None:
                raise ConfigError(f"{file}: {row.name} has no figure of {metric.name}.", "Run the bench again.")
    return result
