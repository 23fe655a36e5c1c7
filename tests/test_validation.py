from __future__ import annotations

import pytest

from hf_edit.errors import InvalidEditError
from hf_edit.validation import checked_fields, checked_text, located, parse_json, shown


def test_located_puts_the_place_in_front_and_keeps_the_remedy() -> None:
    with pytest.raises(InvalidEditError) as caught, located("file"), located("line"):
        raise InvalidEditError("Wrong.", "Right it.")
    assert (caught.value.message, caught.value.remedy) == ("file: line: Wrong.", "Right it.")


def test_text_is_returned_as_it_is() -> None:
    assert checked_text(" a\n", "The text") == " a\n"


def test_fields_that_are_null_count_as_absent() -> None:
    assert checked_fields({"a": 0, "b": None}, "It", required=("a",), optional=("b",)) == {"a": 0}
    with pytest.raises(InvalidEditError, match="It lacks 'a', 'c'"):
        checked_fields({"a": None}, "It", required=("a", "c"), optional=())


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "a": 2}}]'])
def test_keys_given_twice_are_refused_at_any_depth(text: str) -> None:
    with pytest.raises(InvalidEditError, match="key 'a' is given twice"):
        parse_json(text)


def test_numbers_beyond_reason_are_an_error_like_any_other() -> None:
    with pytest.raises(InvalidEditError, match="JSON that cannot be read"):
        parse_json("9" * 5000)


def test_long_values_are_cut() -> None:
    assert shown("short") == "'short'"
    assert len(shown("long" * 100)) == 80
