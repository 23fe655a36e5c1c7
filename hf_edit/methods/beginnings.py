"""Which tokens of texts have the same text behind them: to the model they are one token, with one key."""

from __future__ import annotations

from collections.abc import Sequence


def beginnings(ids: Sequence[int]) -> list[int]:
    """Per token a number for it and all before it, the same wherever a text begins the same."""
    found: list[int] = []
    so_far = 0
    for token in ids:
        so_far = hash((so_far, token))
        found.append(so_far)
    return found
