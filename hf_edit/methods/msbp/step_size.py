"""How far a step goes, found by forward passes: no training, no constant of one model."""

from __future__ import annotations

from collections.abc import Callable


GROWTH = 2.0
TURNS = 5
"""Most doublings, or halvings, of the size that the search begins with."""
BETWEEN = 2**0.5
REFINEMENTS = 2


def smallest_step(loss_at: Callable[[float], float], start: float, before: float, goal: float) -> float:
    """The smallest step size found that brings the loss to `goal`; the best one if none does; 0 if none
    lowers it, or the loss is at the goal already.

    Doubles while that helps and the goal is not reached, then looks between the sizes on either side.

    Args:
        loss_at: the loss, with whatever it costs elsewhere added, at a step size.
        start: where the search begins.
        before: the loss at 0.
        goal: enough.
    """
    if before <= goal:
        return 0.0
    tried = {0.0: before}

    def at(size: float) -> float:
        if size not in tried:
            tried[size] = loss_at(size)
        return tried[size]

    size = start
    for _ in range(TURNS):
        if at(size) < before:
            break
        size /= GROWTH
    else:
        return 0.0
    for _ in range(TURNS):
        if at(size) <= goal or not at(GROWTH * size) < at(size):  # NaN is no improvement
            break
        size *= GROWTH
    if at(size) > goal:  # the minimum lies between its neighbours
        return min((size / BETWEEN, size, size * BETWEEN), key=at)
    return _smallest_enough(at, size, goal)


def _smallest_enough(at: Callable[[float], float], size: float, goal: float) -> float:
    """The smallest size found that is enough, given one that is."""
    for _ in range(TURNS):
        if not at(size / GROWTH) <= goal:
            break
        size /= GROWTH
    low = size / GROWTH
    for _ in range(REFINEMENTS):
        middle = (low * size) ** 0.5
        low, size = (low, middle) if at(middle) <= goal else (middle, size)
    return size
