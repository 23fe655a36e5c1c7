"""What a bench is to measure: methods, data, how many edits together, seeds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_edit.bench.baselines import BASELINES
from hf_edit.bench.questions import indices
from hf_edit.datasets.formats import FORMATS
from hf_edit.errors import ConfigError
from hf_edit.evaluation.config import EvaluateConfig
from hf_edit.methods import METHODS
from hf_edit.settings import Settings, setting


_PLAIN = re.compile(r"\w[\w.+=]*(-[\w.+=]+)*", re.ASCII)


@dataclass(frozen=True)
class Method:
    """One row of the bench.

    Args:
        method: of `METHODS` or `BASELINES`.
        label: names it in files and reports.
        settings: of the method.
    """

    method: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in (*METHODS, *BASELINES):
            raise ConfigError(
                f"The method {self.method!r} is unknown.", f"Use one of {', '.join((*METHODS, *BASELINES))}."
            )
        _check_name(self.label, "label of a method")
        if self.is_baseline and self.settings:
            raise ConfigError(f"The baseline {self.method!r} has no settings.", "Leave them out.")
        if "seed" in self.settings:
            raise ConfigError(f"The method {self.label!r} has a seed of its own.", "Name it among the bench's seeds.")
        if not self.is_baseline:
            self.config(None, 0)

    @classmethod
    def of(cls, value: Any) -> Method:
        """From a name, or a table with `method` and, if wanted, `label` and `settings`."""
        table = _table({"method": value} if isinstance(value, str) else value, "method", cls)
        name, settings = table.get("method"), table.get("settings", {})
        if not isinstance(name, str) or not isinstance(settings, Mapping):
            raise ConfigError(f"{value!r} describes no method.", 'Write {method = "name", settings = {...}}.')
        return cls(name, table.get("label", name), settings)

    @property
    def is_baseline(self) -> bool:
        """Whether nothing is computed for it."""
        return self.method in BASELINES

    def config(self, format: str | None, seed: int) -> Any:
        """Its settings; ConfigError for one that the method has not."""
        return METHODS[self.method].config_class.from_mapping({"format": format, "seed": seed, **self.settings})

    def to_json(self) -> dict[str, Any]:
        """As `of` reads it."""
        return {"method": self.method, "label": self.label, "settings": dict(self.settings)}


@dataclass(frozen=True)
class Data(Settings):
    """One data set."""

    name: str = setting("", "Names it in files and reports.")
    file: str = setting("", "The file, in the folder of data.")
    layout: str = setting("jsonl", "How the file is written.", choices=tuple(FORMATS))
    records: str = setting("", "Which edits: ranges as 0:100, or single numbers, with commas. None: all.")
    together: tuple[int, ...] = setting(
        (), "How many edits one pack teaches; several numbers: each of them. None: all in one pack.", at_least=1
    )
    format: str | None = setting(None, "Prompt format.", choices=("chat", "plain", "qa"))
    strangers: str | None = setting(
        None, "A file of the same layout whose questions are not edited and shall not move."
    )
    stranger_count: int = setting(32, "How many of them are asked, evenly spread over the file.", at_least=1)
    evaluators: tuple[str, ...] | None = setting(
        None, "Evaluators by name, instead of those of the whole bench. None: all that there are probes for."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_name(self.name, "name of a data set")
        if not self.file:
            raise ConfigError(f"The data set {self.name!r} has no file.", "Name one.")
        if len(set(self.together)) != len(self.together):
            raise ConfigError(f"together = {list(self.together)} holds a number twice.", "Give each once.")
        indices(self.records, 0)

    @classmethod
    def of(cls, value: Any) -> Data:
        """From a table; the name is the file's where none is given."""
        table = _table(value, "data set", cls)
        return cls.from_mapping({"name": Path(str(table.get("file", ""))).stem, **table})


@dataclass(frozen=True)
class BenchConfig:
    """A bench: every method on every data set, at every size, with every seed.

    Args:
        methods: rows; one at least, each label once.
        data: one at least, each name once.
        seeds: of methods and evaluation. Baselines are measured with the first.
        text: a file of running text for perplexity, in the folder of data.
        evaluate: settings of `EvaluateConfig` for all.
    """

    methods: tuple[Method, ...]
    data: tuple[Data, ...]
    seeds: tuple[int, ...] = (0,)
    text: str | None = None
    evaluate: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lists: dict[str, list[Any]] = {
            "methods": [one.label for one in self.methods],
            "data": [one.name for one in self.data],
            "seeds": list(self.seeds),
        }
        for what, names in lists.items():
            if not names:
                raise ConfigError(f"The bench has no {what}.", "Give one at least.")
            check_once(what, names)
        if not all(type(seed) is int and seed >= 0 for seed in self.seeds):
            raise ConfigError(f"The seeds are {list(self.seeds)}.", "Use whole numbers from 0 on.")
        for name, place in (("seed", "seeds"), ("format", "the format of each data set")):
            if name in self.evaluate:
                raise ConfigError(f"The bench's evaluate has a {name} of its own.", f"Use {place} instead.")
        for data in self.data:
            self.evaluation(data, 0)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> BenchConfig:
        """From JSON or TOML values.

        Raises:
            ConfigError: something is unknown or missing, or a value is outside its limits.
        """
        table = _table(values, "bench", cls)
        evaluate, text = table.get("evaluate", {}), table.get("text")
        if not isinstance(evaluate, Mapping) or not isinstance(text, (str, type(None))):
            raise ConfigError("The bench's evaluate is no table, or its text no name of a file.", "Correct it.")
        return cls(
            methods=tuple(map(Method.of, _list(table, "methods"))),
            data=tuple(map(Data.of, _list(table, "data"))),
            seeds=tuple(_list(table, "seeds", (0,))),
            text=text,
            evaluate=evaluate,
        )

    def evaluation(self, data: Data, seed: int) -> EvaluateConfig:
        """How packs on this data are evaluated."""
        own = {} if data.evaluators is None else {"evaluators": list(data.evaluators)}
        return EvaluateConfig.from_mapping({"format": data.format, **self.evaluate, **own, "seed": seed})

    def to_json(self) -> dict[str, Any]:
        """As `from_mapping` reads it; of files that are elsewhere the names alone."""
        data = [{**one.to_json(), "file": Path(one.file).name} for one in self.data]
        return {
            "methods": [method.to_json() for method in self.methods],
            "data": [{key: value for key, value in one.items() if value not in (None, [], "")} for one in data],
            "seeds": list(self.seeds),
            "text": None if self.text is None else Path(self.text).name,
            "evaluate": dict(self.evaluate),
        }


def check_once(what: str, names: Sequence[Any]) -> None:
    """Raise a ConfigError if a name of the bench's `what` is given twice."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"The {what} hold {twice[0]!r} twice.", "Give each once, under a label of its own.")


def _check_name(name: Any, what: str) -> None:
    if not isinstance(name, str) or not _PLAIN.fullmatch(name) or len(name) > 60:
        raise ConfigError(
            f"The {what} is {name!r}.",
            "Use up to 60 letters, digits and single signs _ . + = - between them: files are named after it.",
        )


def _table(value: Any, what: str, cls: type) -> Mapping[str, Any]:
    """A table that has no other keys than the fields of `cls`."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{value!r} describes no {what}.", "Write a table.")
    known = list(cls.__dataclass_fields__)  # type: ignore[attr-defined]
    unknown = [key for key in value if key not in known]
    if unknown:
        raise ConfigError(f"A {what} has no setting {unknown[0]!r}.", f"Settings: {', '.join(known)}.")
    return value


def _list(table: Mapping[str, Any], key: str, otherwise: Iterable[Any] = ()) -> list[Any]:
    value = table.get(key, list(otherwise))
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"The bench's {key} are {value!r}, no list.", "Write a list.")
    return list(value)
