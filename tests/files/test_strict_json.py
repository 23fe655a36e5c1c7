from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_edit.errors import PackError
from hf_edit.files.strict_json import MAX_DEPTH, dumps, loads, parse


@dataclass(frozen=True)
class Inner:
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Outer:
    name: str | None
    inner: Mapping[str, Inner]
    free: Mapping[str, Any]


GOOD = {"name": None, "inner": {"a": {"numbers": [1, 2]}}, "free": {"x": [1.5, {"y": True}]}}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
).filter(lambda value: dumps_or_none(value) is not None)


def dumps_or_none(value: Any) -> bytes | None:
    try:
        return dumps(value)
    except UnicodeEncodeError:
        return None


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), values))
def test_what_is_written_is_read_back(value: dict[str, Any]) -> None:
    assert loads(dumps(value), "x.json") == value


def test_the_order_of_keys_does_not_matter() -> None:
    assert dumps({"b": 1, "a": {"d": 2, "c": 3}}) == dumps({"a": {"c": 3, "d": 2}, "b": 1})


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[1]",
        b'{"a": 1',
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xff"}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
)
def test_hostile_json_is_refused(text: bytes) -> None:
    with pytest.raises(PackError, match=r"x\.json") as caught:
        loads(text, "x.json")
    assert len(str(caught.value)) < 1000


def test_dataclasses_are_the_schema() -> None:
    assert parse(Outer, {**GOOD, "unknown": 1}, "x") == Outer(None, {"a": Inner((1, 2))}, GOOD["free"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 3}, "x: name is an integer, not a text"),
        ({"inner": []}, "x: inner is a list, not an object"),
        ({"inner": {"a": {}}}, "x: inner: a: the field 'numbers' is missing"),
        ({"inner": {"a": {"numbers": [1, True]}}}, "x: inner: a: numbers: 1 is true or false, not an integer"),
        ({"inner": {"a": {"numbers": [1.0]}}}, "numbers: 0 is a number with a fraction, not an integer"),
        ({"free": None}, "x: free is null, not an object"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PackError, match=message):
        parse(Outer, {**GOOD, **changes}, "x")


def test_brackets_inside_brackets_are_bounded() -> None:
    inner = MAX_DEPTH - 1  # the object itself is one
    assert loads(b'{"a": ' + b"[" * inner + b"]" * inner + b"}", "x.json")
    with pytest.raises(PackError, match=f"more than {MAX_DEPTH} brackets"):
        loads(b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "x.json")


def test_a_key_that_stands_twice_among_many_is_found_at_once() -> None:
    keys = ",".join(f'"{i}": 0' for i in range(200_000))
    with pytest.raises(PackError, match="'199999' stands twice"):
        loads(f'{{{keys}, "199999": 0}}'.encode(), "x.json")
