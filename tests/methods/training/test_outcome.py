"""What receipts say of edits that were taught or not."""

from __future__ import annotations

from typing import Any

import pytest

from hf_edit.methods.training.outcome import told_right


@pytest.mark.parametrize(
    "receipt",
    [
        {"a": {"loss": 0.1, "right": True}, "b": {"loss": 2.0, "right": False}},
        {"preservation": 0.1, "right": {"a": True, "b": False}},
    ],
)
def test_both_forms_of_a_receipt(receipt: dict[str, Any]) -> None:
    assert told_right(receipt, ["a", "b", "c"]) == {"a": True, "b": False}


def test_ids_like_names_in_a_receipt() -> None:
    joint = {"right": {"right": True, "own_text": False, "a": True}, "own_text": {"b": True}}
    assert told_right(joint, ["right", "own_text", "a"]) == {"right": True, "own_text": False, "a": True}
    trained = {"right": {"loss": 0.1, "right": False}, "loss": {"loss": 0.1, "right": True}}
    assert told_right(trained, ["right", "loss", "a"]) == {"right": False, "loss": True}


@pytest.mark.parametrize("receipt", [{}, {"right": True, "a": 3}, {"right": {"a": "yes"}}, {"a": {"chunks": 2}}])
def test_receipts_that_say_nothing_of_it(receipt: dict[str, Any]) -> None:
    assert told_right(receipt, ["a"]) == {}
