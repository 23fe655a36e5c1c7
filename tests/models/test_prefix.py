"""Prefixes whose padding is moved."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_edit.models.prefix import States, Tokens


MASK = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 0]])
ALIGNED = [[1, 2, 4], [2, 3, 4]]


def numbered(*width: int) -> Tensor:
    """(2, 5, ...): each token holds its number, from 1."""
    return torch.arange(1.0, 6.0).reshape(1, 5, *[1] * len(width)).expand(2, 5, *width)


def test_padding_of_states_is_moved_to_the_front_and_cut() -> None:
    keys, values = numbered(3, 4).transpose(1, 2), numbered(3, 2).transpose(1, 2)
    states = States(1, ((keys, values), (keys, values)))
    assert states.size == 2 * 4 * 2 * 5 * 3 * (4 + 2)
    shorter, mask = states.aligned(MASK)
    assert mask.tolist() == [[1, 1, 1], [1, 1, 1]] and shorter.length == 3
    for moved_keys, moved_values in shorter.states:
        assert moved_keys.shape == (2, 3, 3, 4) and moved_values.shape == (2, 3, 3, 2)
        assert moved_keys[:, 0, :, 0].tolist() == moved_values[:, 2, :, 1].tolist() == ALIGNED


def test_the_longest_row_says_how_much_is_left() -> None:
    keys = numbered(1, 1).transpose(1, 2)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    moved, left = States(0, ((keys, keys),)).aligned(mask)
    assert left.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert moved.states[0][0][0, 0, 2:, 0].tolist() == [1, 2]


def test_nothing_is_moved_where_nothing_is_padded() -> None:
    states = States(0, ((numbered(1, 1).transpose(1, 2),) * 2,))
    whole = torch.ones_like(MASK)
    assert states.aligned(whole) == (states, whole)
    none = States.none(0, 1, torch.empty(0))
    assert none.aligned(whole[:, :0])[0] is none and none.size == 0


def test_tokens_move_with_all_that_belongs_to_them() -> None:
    linear = object()
    tokens = Tokens(0, numbered().long(), MASK, numbered(2), (linear, numbered(3)))
    moved, mask = tokens.aligned(MASK)
    assert moved.ids.tolist() == ALIGNED and torch.equal(moved.mask, mask) and bool(mask.all())
    assert moved.entering is not None and moved.shift is not None and moved.shift[0] is linear
    assert moved.entering[..., 1].tolist() == moved.shift[1][..., 2].tolist() == ALIGNED
    assert tokens.size == 2 * 5 * (8 + 8 + 4 * 2 + 4 * 3)
