"""Differences between tensors, to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_edit.compose import bits
from hf_edit.errors import PackError


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two tensors of one dtype with any bit patterns at all: NaNs, infinities, both zeros."""
    dtype = draw(st.sampled_from(bits.DTYPES))
    size = dtype.itemsize * draw(st.integers(1, 20))
    data = draw(st.binary(min_size=2 * size, max_size=2 * size))
    both = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).reshape(2, -1)
    return both[0], both[1]


def same_bits(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first.view(torch.uint8), second.view(torch.uint8))


@given(pairs())
def test_a_difference_gives_back_every_bit(pair: tuple[Tensor, Tensor]) -> None:
    before, after = pair
    assert same_bits(bits.undone(bits.difference(before, after), after), before)
    assert (bits.digest(before) == bits.digest(after)) == same_bits(before, after)


@pytest.mark.parametrize("dtype", bits.DTYPES)
def test_small_changes_make_small_differences(dtype: torch.dtype) -> None:
    before = torch.randn(64, 256).to(dtype)
    code = bits.difference(before, before + (before.double() * 1e-3 * torch.randn(64, 256)).to(dtype))
    assert code.numel() < 0.9 * before.numel() * dtype.itemsize
    assert bits.difference(before, before).numel() < 1000


@pytest.mark.parametrize("dtype", bits.DTYPES)
def test_neighbours_are_next_to_each_other(dtype: torch.dtype) -> None:
    values = torch.cat([torch.randn(100), torch.tensor([1.0, -1.0, 2.0, -0.5, 1e-6])]).to(dtype)
    up, down = bits.neighbour(values, torch.ones_like(values)), bits.neighbour(values, -torch.ones_like(values))
    assert (up > values).all() and (down < values).all()
    assert torch.equal(bits.neighbour(up, values - up), values)
    between = ((up.double() + values.double()) / 2).to(dtype)
    assert ((between == up) | (between == values)).all()
    assert torch.equal(bits.neighbour(values, torch.zeros_like(values)), values)


@pytest.mark.parametrize("spoil", [lambda c: c[:-3], lambda c: torch.cat([c, c]), lambda c: c.flip(0)])
def test_what_is_no_difference_is_refused(spoil) -> None:
    before, after = torch.randn(8, 8), torch.randn(8, 8)
    code = bits.difference(before, after)
    with pytest.raises(PackError):
        bits.undone(spoil(code), after)
    with pytest.raises(PackError, match="not one of 512 bytes"):
        bits.undone(code, torch.randn(16, 8))


def test_a_bomb_is_not_unpacked() -> None:
    bomb = bits.difference(torch.zeros(2_000_000), torch.zeros(2_000_000))
    assert bomb.numel() < 100_000
    with pytest.raises(PackError, match="not one of 16 bytes"):
        bits.undone(bomb, torch.zeros(4))
