"""Running moments against those of all rows at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from hf_edit.solvers.running import EPSILON, RunningMoments


def rows_of(n: int, width: int, seed: int) -> Tensor:
    """Columns of very different size and offset."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.randint(-4, 4, (width,), generator=generator)
    offset = 100 * torch.randn(width, generator=generator, dtype=torch.float64)
    return scale * (torch.randn(n, width, generator=generator, dtype=torch.float64) + offset)


def added(rows: Tensor, counts: list[int]) -> RunningMoments:
    moments = RunningMoments.empty(rows.shape[1])
    for part in rows.split(counts):
        moments.add(part)
    return moments


def expected(rows: Tensor, of: Tensor) -> Tensor:
    return (rows - of.mean(dim=0)) / (of.std(dim=0) + EPSILON)


@settings(max_examples=80, deadline=None)
@given(counts=st.lists(st.integers(1, 7), min_size=1, max_size=8), seed=st.integers(0, 1000))
def test_any_portions_give_the_moments_of_all_rows(counts: list[int], seed: int) -> None:
    rows = rows_of(sum(counts), 6, seed)
    moments = added(rows, counts)
    assert moments.count == len(rows)
    torch.testing.assert_close(moments.mean, rows.mean(dim=0), rtol=1e-12, atol=1e-12)
    squares = (rows - rows.mean(dim=0)).square().sum(dim=0)
    torch.testing.assert_close(moments.squares, squares, rtol=1e-8, atol=1e-14)
    if len(rows) > 1:
        torch.testing.assert_close(moments.standardised(rows), expected(rows, rows), rtol=1e-7, atol=1e-9)


def test_rows_one_by_one() -> None:
    """A variance of one row is 0, not undefined, and does not spoil those that follow."""
    rows = rows_of(50, 4, seed=3)
    moments = added(rows, [1] * 50)
    torch.testing.assert_close(moments.standardised(rows), expected(rows, rows), rtol=1e-8, atol=1e-10)
    assert torch.equal(added(rows[:1], [1]).standardised(rows[:1]), torch.zeros(1, 4, dtype=torch.float64))


def test_a_small_spread_on_a_large_offset() -> None:
    """A sum of squares would lose it."""
    generator = torch.Generator().manual_seed(0)
    rows = 1e6 + 1e-3 * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    moments = added(rows, [7] * 28 + [4])
    torch.testing.assert_close((moments.squares / 199).sqrt(), rows.std(dim=0), rtol=1e-6, atol=0)


def test_constant_columns_give_zero() -> None:
    rows = rows_of(12, 4, seed=1)
    rows[:, 2] = 3.25
    standardised = added(rows, [5, 1, 6]).standardised(rows)
    assert torch.equal(standardised[:, 2], torch.zeros(12, dtype=torch.float64))
    assert torch.isfinite(standardised).all()


def test_other_rows_are_measured_by_what_was_seen() -> None:
    seen, new = rows_of(20, 5, seed=1), rows_of(3, 5, seed=2)
    moments = added(seen, [20])
    torch.testing.assert_close(moments.standardised(new), expected(new, seen), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_keep_their_dtype_and_moments_are_double(dtype: torch.dtype) -> None:
    rows = rows_of(9, 3, seed=1).to(dtype)
    moments = added(rows, [4, 5])
    assert moments.mean.dtype == moments.squares.dtype == torch.float64
    standardised = moments.standardised(rows)
    assert standardised.dtype == dtype
    assert torch.equal(standardised, expected(rows.double(), rows.double()).to(dtype))


def test_its_state_goes_through_a_file_and_on() -> None:
    rows = rows_of(30, 5, seed=4)
    whole, first = added(rows, [10, 12, 8]), added(rows[:22], [10, 12])
    again = RunningMoments.from_state(load(save(first.state())))
    again.add(rows[22:])
    assert again.count == whole.count == 30
    assert torch.equal(again.mean, whole.mean) and torch.equal(again.squares, whole.squares)


def test_a_state_does_not_change_with_what_it_was_taken_of() -> None:
    rows = rows_of(8, 2, seed=0)
    moments = added(rows[:4], [4])
    kept = moments.state()
    before = {name: tensor.clone() for name, tensor in kept.items()}
    moments.add(rows[4:])
    assert all(torch.equal(kept[name], tensor) for name, tensor in before.items())
