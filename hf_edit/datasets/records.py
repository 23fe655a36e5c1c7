"""Records of published JSON files, read so that every error names the file, the record and the field."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


def read_edits(path: str | os.PathLike[str], to_edit: Callable[[Record], Edit], limit: int | None = None) -> EditSet:
    """The edits of a UTF-8 file that holds a JSON list of records.

    The published sets ask a few questions twice, some with two answers. A set of edits cannot hold both, so the first
    record of a question is kept and the later ones are left out.

    Args:
        path: the file.
        to_edit: makes the edit of a record.
        limit: how many edits to keep, from the first on; all by default.

    Raises:
        InvalidEditError: a file or record that cannot be read, with its place.
        ConfigError: a limit below 1.
    """
    check_limit(limit)
    name = os.fspath(path)
    text = read_text(path)
    with located(name):
        values = checked_items(parse_json(text), "The file")
    edits: dict[str, Edit] = {}
    for i, value in values:
        if len(edits) == limit:
            break
        with located(f"{name}: record {i}"):
            edit = to_edit(Record.of(value, "the record", i))
        edits.setdefault(prompt_key(edit.prompt), edit)
    with located(name):
        return EditSet(edits.values())


def check_limit(limit: int | None) -> None:
    """Raise ConfigError for a limit below 1."""
    if limit is not None and limit < 1:
        raise ConfigError(f"The limit of edits is {limit}, less than 1.", "Give 1 or more, or leave it out for all.")
