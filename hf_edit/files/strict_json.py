"""JSON of hf_edit's files: one way to write it, and no surprises when reading it.

The types of frozen dataclasses are the schema: `parse` builds one from JSON and names the field that does not fit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from hf_edit.errors import PackError


T = TypeVar("T")
MAX_DEPTH = 200
"""Brackets inside brackets, far below what Python's own recursion can write and copy."""
_REMEDY = "The file is damaged or was not written by hf_edit: get it anew from where it was published."
_NAMES = {
    bool: "true or false",
    dict: "an object",
    float: "a number with a fraction",
    int: "an integer",
    list: "a list",
    NoneType: "null",
    str: "a text",
}


def dumps(value: Any) -> bytes:
    """Sorted, indented, UTF-8, one final newline: the same value gives the same bytes."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def loads(data: bytes, name: str) -> dict[str, Any]:
    """The object in `data`, the content of the file `name`.

    Raises:
        PackError: not UTF-8, not JSON, not an object, a key twice, NaN or infinity, nested too deeply.
    """

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            times = Counter(key for key, _ in pairs)
            raise ValueError(f"the key {next(key for key in times if times[key] > 1)!r} stands twice")
        return result

    def no_constant(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not allowed")

    try:
        value = json.loads(data.decode(), object_pairs_hook=object_of, parse_constant=no_constant)
        _check_depth(value)
        # escapes can spell halves of characters, and 1e999 infinity: neither can be written again
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise PackError(f"{name} is not valid JSON: {error}.", _REMEDY) from error
    if not isinstance(value, dict):
        raise PackError(f"{name} holds {_kind(value)} instead of an object.", _REMEDY)
    return value


def parse(cls: type[T], value: Any, where: str) -> T:
    """`value` as a `cls`: a dataclass, a mapping or tuple of such, a union with None, a plain JSON type, or Any.

    Args:
        where: the file, followed by the path of fields, for messages.

    Raises:
        PackError: a field is missing or of another type. Unknown fields are left out.
    """
    origin, arguments = get_origin(cls), get_args(cls)
    if cls is Any:  # type: ignore[comparison-overlap]
        return value
    if origin is UnionType:
        kind = NoneType if value is None and NoneType in arguments else arguments[0]
        return parse(kind, value, where)
    if is_dataclass(cls):
        hints = get_type_hints(cls)
        entries = _of_type(dict, value, where)
        missing = [field.name for field in fields(cls) if field.name not in entries]
        if missing:
            raise PackError(f"{where}: the field {missing[0]!r} is missing.", _REMEDY)
        return cls(**{f.name: parse(hints[f.name], entries[f.name], f"{where}: {f.name}") for f in fields(cls)})
    if origin is not None and issubclass(origin, Mapping):
        entries = _of_type(dict, value, where)
        return {key: parse(arguments[1], item, f"{where}: {key}") for key, item in entries.items()}  # type: ignore[return-value]
    if origin is tuple:
        items = _of_type(list, value, where)
        return tuple(parse(arguments[0], item, f"{where}: {i}") for i, item in enumerate(items))  # type: ignore[return-value]
    return _of_type(cls, value, where)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for outer in level
            if isinstance(outer, (dict, list))
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError(f"more than {MAX_DEPTH} brackets stand inside each other")


def _of_type(cls: type[T], value: Any, where: str) -> T:
    if type(value) is not cls:  # exact, because a bool is an int
        raise PackError(f"{where} is {_kind(value)}, not {_NAMES[cls]}.", _REMEDY)
    return value


def _kind(value: Any) -> str:
    return _NAMES[type(value)]
