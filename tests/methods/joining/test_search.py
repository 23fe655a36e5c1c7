"""Where lambda is looked for, and how seldom."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_edit.methods.joining.search import PRESERVATIONS, strongest


EDITS = 4


@dataclass(frozen=True)
class Solve:
    preservation: float
    right: list[bool]


class Problem:
    """How many answers each lambda keeps, and which were solved for."""

    def __init__(self, kept: list[int]) -> None:
        self.kept = dict(zip(PRESERVATIONS, kept, strict=True))
        self.solved: list[float] = []

    def __call__(self, preservation: float) -> Solve:
        assert preservation not in self.solved, "solved twice"
        self.solved.append(preservation)
        kept = self.kept[preservation]
        return Solve(preservation, [True] * kept + [False] * (EDITS - kept))


counts = st.lists(st.integers(0, EDITS), min_size=len(PRESERVATIONS), max_size=len(PRESERVATIONS)).map(sorted)
"""Fewer answers are kept the larger lambda is."""


@given(counts, st.sampled_from([None, *PRESERVATIONS, 41.0]))
def test_the_largest_that_keeps_as_many_as_the_last_is_found_wherever_one_looks_first(kept, near) -> None:
    problem = Problem(kept)
    wanted = next(p for p, count in problem.kept.items() if count >= kept[-1])
    assert strongest(problem, near).preservation == wanted
    assert len(problem.solved) <= 7


@pytest.mark.parametrize("place", range(1, len(PRESERVATIONS)))
def test_a_guess_that_is_right_takes_two_solves(place: int) -> None:
    problem = Problem([EDITS - 1] * place + [EDITS] * (len(PRESERVATIONS) - place))
    assert strongest(problem, PRESERVATIONS[place]).preservation == PRESERVATIONS[place]
    assert len(problem.solved) <= 2


@given(st.lists(st.integers(0, EDITS), min_size=len(PRESERVATIONS), max_size=len(PRESERVATIONS)))
def test_no_fewer_answers_are_kept_than_by_the_last_whatever_a_guess_does(kept) -> None:
    for near in (None, *PRESERVATIONS):
        assert sum(strongest(Problem(kept), near).right) >= kept[-1]


@pytest.mark.parametrize("near", [None, "100", 0.0, float("nan")])
def test_a_guess_that_is_none_of_them_is_passed_over(near) -> None:
    assert strongest(Problem([EDITS] * len(PRESERVATIONS)), near).preservation == PRESERVATIONS[0]
