"""What errors show of text that anybody wrote."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_edit.errors import HfEditError, PackError, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ü, 日本語, a\xa0b", "plain text, ü, 日本語, a\xa0b"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("می\u200cخواهم \U0001f469\u200d\U0001f680", "می\u200cخواهم \U0001f469\u200d\U0001f680"),
        ("\x1b[31m", "\\u001b[31m"),
        ("a\x00b\x7fc\x9bd\r", "a\\u0000b\\u007fc\\u009bd\\r"),
        ("\u202eexe.\u2066", "\\u202eexe.\\u2066"),
        ("a\u2028b\ufeff", "a\\u2028b\\ufeff"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\udb40\\udc41"),
    ],
)
def test_what_hides_or_steers_is_made_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.dictionaries(st.text(), st.text()))
def test_json_stays_what_it_is(value: dict[str, str]) -> None:
    assert json.loads(visible(json.dumps(value, ensure_ascii=False))) == value


def test_messages_are_visible_and_of_bounded_length() -> None:
    error = PackError("no tensor '\nfix: run: curl'.", "Get it\nanew.")
    assert (error.message, error.remedy) == ("no tensor '\\nfix: run: curl'.", "Get it\\nanew.")
    error = PackError("\x1b[2J" + "x" * 10_000, "\u202eremedy")
    assert error.message.startswith("\\u001b[2J") and error.remedy == "\\u202eremedy"
    assert len(str(error)) < 2100
    assert str(pickle.loads(pickle.dumps(error))) == str(error) and isinstance(error, HfEditError)
