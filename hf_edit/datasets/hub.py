"""Data sets of the Hub, or rows at hand, with a mapping from the fields of an edit to columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib import import_module
from itertools import islice
from typing import Any

from hf_edit.datasets.records import check_limit
from hf_edit.edits import Edit, EditSet
from hf_edit.errors import ConfigError, InvalidEditError
from hf_edit.validation import kind, listed, located


FIELDS = tuple(field.name for field in fields(Edit))
PROBES = ("locality", "portability")


def read(
    dataset: Any,
    *,
    mapping: Mapping[str, Any],
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
) -> EditSet:
    """The edits of a data set, one a row.

    Args:
        dataset: the id of a data set on the Hub, a `datasets.Dataset`, or an iterable of mappings.
        mapping: field of an edit -> column. Dots lead into nested columns and numbers into lists: `"answers.0"`.
            `paraphrases` may be a column of text or of lists of text. `locality` and `portability` may be columns of
            probes, or a mapping `{"prompt": column, "answer": column}` of columns of text or of lists of text.
        split: of the data set on the Hub, such as `"train"` or `"train[:100]"`; needed with an id only.
        config: of the data set on the Hub, where it has several.
        revision: of the data set on the Hub; pin it to have the same edits again.
        limit: how many edits to read, from the first on; all by default.

    Raises:
        ConfigError: a mapping that names no field of an edit or lacks one that is needed, a data set that cannot be
            loaded, or the package `datasets` missing.
        InvalidEditError: a row that makes no edit, with its number.
    """
    _check_mapping(mapping)
    check_limit(limit)
    rows, name = (_load(dataset, split, config, revision), dataset) if isinstance(dataset, str) else (dataset, "")
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        raise ConfigError(f"The data set is {kind(rows)}.", "Give the id of a data set, one split of it, or rows.")
    edits = []
    for i, row in enumerate(islice(rows, limit)):
        with located(f"{name} row {i}".lstrip()):
            values = {field: _value(row, field, column) for field, column in mapping.items()}
            edits.append(Edit.from_json({"source": f"{name} row {i}", **values} if name else values))
    with located(name or "data set"):
        return EditSet(edits)


def _check_mapping(mapping: Mapping[str, Any]) -> None:
    unknown = [field for field in mapping if field not in FIELDS]
    if unknown:
        raise ConfigError(f"The mapping names {listed(unknown)}, no field of an edit.", f"Allowed: {listed(FIELDS)}.")
    missing = [field for field in ("prompt", "target") if field not in mapping]
    if missing:
        raise ConfigError(f"The mapping has no column for {listed(missing)}.", "Name the column that holds it.")
    for field, column in mapping.items():
        nested = field in PROBES and isinstance(column, Mapping) and {"prompt"} <= set(column) <= {"prompt", "answer"}
        if not nested and not isinstance(column, str):
            raise ConfigError(
                f"The mapping of {field!r} is {column!r}, not the name of a column.",
                "Give a name; for probes also {'prompt': name, 'answer': name}.",
            )


def _load(name: str, split: str | None, config: str | None, revision: str | None) -> Iterable[Any]:
    if split is None:
        raise ConfigError(f"No split of {name!r} was named.", "Name one, such as split='train'.")
    try:
        datasets = import_module("datasets")
    except ModuleNotFoundError:
        raise ConfigError("The package datasets is not installed.", "pip install 'hf-edit[datasets]'") from None
    try:
        return datasets.load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError) as error:  # not found, no such split or config, no connection
        raise ConfigError(
            f"The data set {name!r} (split {split!r}, config {config!r}, revision {revision!r}) cannot be loaded: "
            f"{error}",
            "Check the names on the Hub, your connection and, for a private data set, your login.",
        ) from error


def _value(row: Any, field: str, column: Any) -> Any:
    """The value of one field of an edit, as its JSON form has it."""
    if isinstance(column, Mapping):
        return _probes(*(_at(row, column[key]) if key in column else None for key in ("prompt", "answer")))
    value = _at(row, column)
    if field == "paraphrases" and isinstance(value, str):
        return [value]
    return str(value) if field == "id" and isinstance(value, int) else value


def _probes(prompts: Any, answers: Any) -> list[dict[str, Any]]:
    """Probes of one prompt or a list of them, with their answers."""
    if prompts is None:
        return []
    if not isinstance(prompts, list):
        prompts, answers = [prompts], [answers]
    answers = [None] * len(prompts) if answers is None else answers
    if not isinstance(answers, list) or len(answers) != len(prompts):
        raise InvalidEditError(
            f"{len(prompts)} prompts of probes come with the answers {answers!r}.", "Give each prompt one answer."
        )
    return [{"prompt": prompt, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True)]


def _at(row: Any, column: str) -> Any:
    """The value at a column's name, or at a path of names and list indices joined by dots."""
    if isinstance(row, Mapping) and column in row:
        return row[column]
    name, _, rest = column.partition(".")
    if isinstance(row, Mapping) and name in row:
        inner = row[name]
    elif isinstance(row, list) and name.isdecimal() and int(name) < len(row):
        inner = row[int(name)]
    else:
        there = f"there are {listed(list(row))}" if isinstance(row, Mapping) else f"the value is {kind(row)}"
        raise InvalidEditError(f"There is no {name!r}; {there}.", "Correct the mapping.")
    return _at(inner, rest) if rest else inner
