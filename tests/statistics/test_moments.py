"""Averages and their weighted sums."""

from __future__ import annotations

import pytest
import torch

from hf_edit.errors import StatisticsError
from hf_edit.statistics.moments import Accumulator, SecondMoments


MOMENTS = SecondMoments(
    matrices={"text": {"a": torch.eye(2), "b": torch.eye(2)}, "prompt": {"a": torch.ones(2, 2)}},
    tokens={"text": 9, "prompt": 2},
    source="here",
)


def test_an_average_over_all_that_was_added() -> None:
    inputs = torch.randn(30, 5)
    accumulator = Accumulator()
    for part in inputs.split([10, 1, 19]):
        accumulator.add("text", {"x": part, "y": 2 * part})
    assert accumulator.count("text") == 30 and accumulator.count("answer") == 0
    moments = accumulator.moments("somewhere")
    assert moments.tokens == {"text": 30} and moments.source == "somewhere"
    torch.testing.assert_close(moments.matrices["text"]["x"], inputs.T @ inputs / 30)
    torch.testing.assert_close(moments.matrices["text"]["y"], 4 * inputs.T @ inputs / 30)


def test_sums_are_in_fp32_whatever_comes_in() -> None:
    accumulator = Accumulator()
    accumulator.add("text", {"x": torch.full((300, 1), 1.0, dtype=torch.bfloat16)})
    assert accumulator.moments("").matrices["text"]["x"].item() == 1.0


def test_parts_are_added_by_weight() -> None:
    combined = MOMENTS.combined("a", {"text": 1.0, "prompt": 0.5, "answer": 0.0})
    assert combined.dtype == torch.float64
    assert torch.equal(combined, torch.tensor([[1.5, 0.5], [0.5, 1.5]], dtype=torch.float64))


@pytest.mark.parametrize(("name", "part"), [("a", "answer"), ("b", "prompt"), ("c", "text")])
def test_a_part_that_was_not_collected(name: str, part: str) -> None:
    with pytest.raises(StatisticsError, match=f"from here hold no part '{part}' for {name}"):
        MOMENTS.combined(name, {part: 0.1})
