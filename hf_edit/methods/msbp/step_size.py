"""How far a step goes, found by forward passes: no training, no constant of one model."""

from __future__ import annotations

from collections.abc import Callable


GROWTH = 2.0
HALVINGS = 6
REFINEMENTS = 3


def smallest_step(loss_at: Callable[[float], float], start: float, before: float, goal: float) -> float:
    """The smallest step size found that brings the loss to `goal`; the best one if none does; 0 if none lowers it.

    Args:
        loss_at: the loss, with whatever it costs elsewhere added, at a step size.
        start: where the search begins.
        before: the loss at 0.
        goal: enough.
    """
    tried = {0.0: before}

    def at(size: float) -> float:
        if size not in tried:
            tried[size] = loss_at(size)
        return tried[size]

    size = start
    for _ in range(HALVINGS):  # down to where the loss falls
        if at(size) < before:
            break
        size /= GROWTH
    else:
        return 0.0
    while at(size) > goal and at(size * GROWTH) < at(size):
        size *= GROWTH
    if at(size) > goal:  # a minimum lies between the neighbours
        between = [size * 0.7, size * 1.4]
        return min([size, *between], key=at)
    low, high = max((s for s in tried if s < size and at(s) > goal), default=0.0), size
    for _ in range(REFINEMENTS):
        middle = (low * high) ** 0.5 if low else high / GROWTH
        low, high = (low, middle) if at(middle) <= goal else (middle, high)
    return high
