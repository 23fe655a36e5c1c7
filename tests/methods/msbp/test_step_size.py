"""The search of a step size on losses that are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_edit.methods.msbp.step_size import smallest_step


MOST_PASSES = 20


def counted(loss: Callable[[float], float]) -> tuple[Callable[[float], float], list[float]]:
    """The loss, which may be asked once for each size and never for what is known, and where it was asked."""
    asked: list[float] = []

    def loss_at(size: float) -> float:
        assert size > 0 and size not in asked
        asked.append(size)
        return loss(size)

    return loss_at, asked


@settings(max_examples=100, deadline=None)
@given(rate=st.floats(0.01, 100), goal=st.floats(0.05, 0.8), off=st.floats(0.2, 5))
def test_the_smallest_step_that_is_enough(rate: float, goal: float, off: float) -> None:
    """However far off the search begins; it is not asked to be close, but to cost little."""
    enough = -math.log(goal) / rate
    loss_at, asked = counted(lambda size: math.exp(-rate * size))
    size = smallest_step(loss_at, off * enough, 1.0, goal)
    assert enough * (1 - 1e-9) <= size <= 2 * enough
    assert len(asked) <= MOST_PASSES


@settings(max_examples=100, deadline=None)
@given(best=st.floats(0.01, 100), left=st.floats(0.1, 0.9), off=st.floats(0.1, 8))
def test_the_best_step_where_none_is_enough(best: float, left: float, off: float) -> None:
    loss_at, asked = counted(lambda size: left + (1 - left) * (size / best - 1) ** 2)
    size = smallest_step(loss_at, off * best, 1.0, 0.01)
    assert best / 1.5 <= size <= best * 1.5
    assert len(asked) <= MOST_PASSES


def test_a_step_that_raises_the_loss_is_refused() -> None:
    loss_at, asked = counted(lambda size: 1 + size)
    assert smallest_step(loss_at, 1.0, 1.0, 0.02) == 0
    assert 0 < len(asked) <= 8


@pytest.mark.parametrize("beyond", [math.inf, math.nan])
def test_a_model_that_breaks_at_long_steps(beyond: float) -> None:
    """Whether the search begins there or comes there."""
    for start in (0.3, 7.0):
        loss_at, _ = counted(lambda size: math.exp(-size) if size < 2 else beyond)
        size = smallest_step(loss_at, start, 1.0, 0.02)
        assert 1.0 <= size < 2.0


def test_losses_that_are_never_numbers_are_refused() -> None:
    loss_at, _ = counted(lambda _: math.nan)
    assert smallest_step(loss_at, 1.0, 1.0, 0.02) == 0


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=30), goal=st.floats(0.0, 0.99))
def test_no_step_is_taken_that_raises_the_loss(values: list[float], goal: float) -> None:
    """On any landscape."""
    seen: dict[float, float] = {}

    def loss_at(size: float) -> float:
        seen[size] = values[len(seen) % len(values)]
        return seen[size]

    size = smallest_step(loss_at, 1.0, 1.0, goal)
    assert size == 0 or seen[size] < 1.0


def test_a_loss_that_is_at_the_goal_without_a_step_ends_the_search() -> None:
    asked = []

    def loss_at(size: float) -> float:
        asked.append(size)
        return 0.999 - size / 1000

    assert smallest_step(loss_at, 1.0, before=1.001, goal=1.0) >= 2.0**-8
    assert len(asked) < 20
