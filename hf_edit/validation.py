"""Checks of what comes from outside: text, JSON values and files. All raise InvalidEditError.

`what` is how a message names the value, at the beginning of a sentence: "The prompt", "Paraphrase 2".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_edit.errors import InvalidEditError


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put `where: ` in front of the message of an InvalidEditError that passes."""
    try:
        yield
    except InvalidEditError as error:
        raise InvalidEditError(f"{where}: {error.message}", error.remedy) from None


def checked_text(value: object, what: str) -> str:
    """`value` if it is text that says something and that UTF-8 can write."""
    if not isinstance(value, str):
        raise InvalidEditError(f"{what} is {kind(value)}, not text.", "Give it as a string.")
    if not value.strip():
        raise InvalidEditError(f"{what} is empty.", "Give it at least one character that shows.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidEditError(
            f"{what} holds half a surrogate pair at character {error.start}.", "Correct the encoding of the text."
        ) from None
    return value


def checked_items(value: object, what: str) -> list[tuple[int, Any]]:
    """The numbered items of a list or tuple."""
    if not isinstance(value, (list, tuple)):
        raise InvalidEditError(f"{what} is {kind(value)}, not a list.", "Put it in a list.")
    return list(enumerate(value))


def checked_object(value: object, what: str) -> Mapping[str, Any]:
    """`value` if it is a JSON object."""
    if not isinstance(value, Mapping):
        raise InvalidEditError(f"{what} is {kind(value)}, not an object.", "Give an object.")
    return value


def checked_fields(value: object, what: str, *, required: Sequence[str], optional: Sequence[str]) -> dict[str, Any]:
    """The fields of a JSON object that are not null, if it has all that are required and none that is unknown."""
    if not isinstance(value, Mapping):
        raise InvalidEditError(
            f"{what} is {kind(value)}, not an object.", f"Give an object with {listed([*required, *optional])}."
        )
    unknown = [name for name in value if name not in required and name not in optional]
    if unknown:
        raise InvalidEditError(
            f"{what} has no field {listed(unknown)}.", f"Allowed are {listed([*required, *optional])}."
        )
    given = {name: item for name, item in value.items() if item is not None}
    missing = [name for name in required if name not in given]
    if missing:
        raise InvalidEditError(f"{what} lacks {listed(missing)}.", "Add it.")
    return given


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file; a byte-order mark in front is allowed and dropped."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InvalidEditError(
            f"{os.fspath(path)}: cannot be read ({error.strerror}).", "Give the path of a readable file."
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InvalidEditError(
            f"{os.fspath(path)}:{line}: byte {error.object[error.start]:#04x} is not UTF-8.", "Save the file in UTF-8."
        ) from None


def parse_json(text: str) -> Any:
    """Parse strictly: an object that gives a key twice is an error, as is anything that is not JSON."""
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise InvalidEditError(f"not JSON at {place} ({error.msg}).", "Correct the JSON.") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise InvalidEditError(f"JSON that cannot be read ({error}).", "Correct the JSON.") from None


def shown(value: object) -> str:
    """`value` as a message shows it; of a long one both ends, since a path says most at its end."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:38]}...{text[-39:]}"


def kind(value: object) -> str:
    """What `value` is, for "X is ..."."""
    return "null" if value is None else f"of type {type(value).__name__}"


def listed(names: Sequence[object]) -> str:
    """Names as a message lists them."""
    return ", ".join(repr(name) for name in names)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise InvalidEditError(f"The key {name!r} is given twice in one object.", "Keep one of the two.")
        result[name] = value
    return result
