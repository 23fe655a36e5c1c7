"""The largest lambda that costs no answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar


PRESERVATIONS = (300.0, 200.0, 140.0, 100.0, 70.0, 50.0, 35.0, 25.0, 17.0, 12.0, 8.0, 5.0, 3.0)
"""Where lambda is looked for: more of it spares everything else, less of it gives the edits all that they ask for."""


class Counted(Protocol):
    """A solve that knows per edit whether its answer is given."""

    @property
    def right(self) -> list[bool]: ...


S = TypeVar("S", bound=Counted)


def strongest(solve: Callable[[float], S], near: float | None = None) -> S:
    """The solve with the first of PRESERVATIONS that keeps as many answers as the last, by bisection.

    What the last keeps is looked up only once another is found that does not keep all.

    Args:
        near: where it may well lie, as that of a like problem: looked at first, then its neighbours. Where a larger
            lambda never keeps more answers, what is found is the same without.
    """
    low, high = 0, len(PRESERVATIONS) - 1
    guess = PRESERVATIONS.index(near) if near in PRESERVATIONS else None
    likely = () if guess is None else (guess, guess - 1, guess + 1)
    best: S | None = None
    wanted: int | None = None  # all, as long as that is None
    while low < high:
        place = next((one for one in likely if low <= one < high), (low + high) // 2)
        tried = solve(PRESERVATIONS[place])
        if wanted is None and not all(tried.right):
            best = best or solve(PRESERVATIONS[-1])
            wanted = sum(best.right)
        if wanted is None or sum(tried.right) >= wanted:
            best, high = tried, place
        else:
            low = place + 1
    return best or solve(PRESERVATIONS[high])
