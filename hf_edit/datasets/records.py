"""Records of published JSON files, read so that every error names the file, the record and the field."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_edit.edits import Edit, EditSet, prompt_key
from hf_edit.errors import ConfigError, InvalidEditError
from hf_edit.validation import checked_items, checked_text, kind, listed, located, parse_json, read_text


@dataclass(frozen=True)
class Record:
    """One JSON object; `where` names it in errors, `index` counts from 0 in its file."""

    values: Mapping[str, Any]
    where: str
    index: int

    @classmethod
    def of(cls, value: object, where: str, index: int) -> Record:
        """A record of an object that may be none."""
        if not isinstance(value, Mapping):
            raise InvalidEditError(f"{where} is {kind(value)}, not an object.", "Give an object.")
        return cls(value, where, index)

    def __contains__(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(field) is not None

    def __getitem__(self, field: str) -> Any:
        if field not in self.values:
            raise InvalidEditError(
                f"{self.where} lacks the field {field!r}; it has {listed(list(self.values))}.",
                "Check that the data is in the format that was named.",
            )
        return self.values[field]

    def text(self, field: str) -> str:
        """A field that holds text which is not empty."""
        return checked_text(self[field], self._name(field))

    def texts(self, field: str) -> list[str]:
        """A field that holds a list of such texts."""
        items = checked_items(self[field], self._name(field))
        return [checked_text(item, f"item {i} of {self._name(field)}") for i, item in items]

    def number(self, field: str) -> int:
        """A field that holds a whole number, as the ids of records are."""
        value = self[field]
        if not isinstance(value, int):
            raise InvalidEditError(f"{self._name(field)} is {kind(value)}, not a whole number.", "Correct the record.")
        return value

    def record(self, field: str) -> Record:
        """A field that holds an object."""
        return Record.of(self[field], self._name(field), self.index)

    def records(self, field: str) -> list[Record]:
        """A field that holds a list of objects."""
        items = checked_items(self[field], self._name(field))
        return [Record.of(item, f"item {i} of {self._name(field)}", self.index) for i, item in items]

    def _name(self, field: str) -> str:
        return f"field {field!r} of {self.where}"


@dataclass(frozen=True)
class Case:
    """One record: an edit, and what is known beside it that serves to measure and not to teach.

    Args:
        old: the answer that the edit replaces.
        fact: the edit in a sentence of its own.
        aliases: an answer -> other ways to say it.
        hops: questions several steps away, each with all answers that count.
    """

    edit: Edit
    old: str | None = None
    fact: str | None = None
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    hops: Sequence[tuple[str, Sequence[str]]] = ()


def read_edits(path: str | os.PathLike[str], to_edit: Callable[[Record], Edit], limit: int | None = None) -> EditSet:
    """The edits of such a file, as `read_cases` reads it."""
    return edits_of(read_cases(path, lambda record: Case(to_edit(record)), limit), path)


def edits_of(cases: Iterable[Case], path: str | os.PathLike[str]) -> EditSet:
    """Their edits; `path` is where errors say that they are from."""
    with located(os.fspath(path)):
        return EditSet(case.edit for case in cases)


def read_cases(
    path: str | os.PathLike[str], to_case: Callable[[Record], Case], limit: int | None = None
) -> list[Case]:
    """The cases of a UTF-8 file that holds a JSON list of records.

    The published sets ask a few questions twice, some with two answers. A set of edits cannot hold both, so the first
    record of a question is kept and the later ones are left out.

    Args:
        path: the file.
        to_case: makes the case of a record.
        limit: how many cases to keep, from the first on; all by default.

    Raises:
        InvalidEditError: a file or record that cannot be read, with its place.
        ConfigError: a limit below 1.
    """
    check_limit(limit)
    name = os.fspath(path)
    text = read_text(path)
    with located(name):
        values = checked_items(parse_json(text), "The file")
    cases: dict[str, Case] = {}
    for i, value in values:
        if len(cases) == limit:
            break
        with located(f"{name}: record {i}"):
            case = to_case(Record.of(value, "the record", i))
        cases.setdefault(prompt_key(case.edit.prompt), case)
    return list(cases.values())


def check_limit(limit: int | None) -> None:
    """Raise ConfigError for a limit below 1."""
    if limit is not None and limit < 1:
        raise ConfigError(f"The limit of edits is {limit}, less than 1.", "Give 1 or more, or leave it out for all.")
