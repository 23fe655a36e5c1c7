"""Low-rank deltas against their dense products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_edit.solvers.low_rank import LowRankDelta, concatenated, summed


SHAPES = {name: st.integers(1, most) for name, most in (("d_out", 9), ("d_in", 9), ("rank", 12), ("seed", 99))}


def delta_of(d_out: int, d_in: int, rank: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> LowRankDelta:
    generator = torch.Generator().manual_seed(seed)
    B, A = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((d_out, rank), (rank, d_in)))
    return LowRankDelta(B, A).to(dtype=dtype)


@settings(max_examples=40, deadline=None)
@given(**SHAPES, exponent=st.integers(-20, 20))
def test_balancing_keeps_every_bit_of_the_product(d_out: int, d_in: int, rank: int, seed: int, exponent: int) -> None:
    delta = delta_of(d_out, d_in, rank, seed, torch.float32)
    delta = LowRankDelta(delta.B * 2.0**exponent, delta.A * 3.0**-2)
    balanced = delta.balanced()
    # column by column: a product of more columns may add them up in another order
    for column in range(rank):
        one = slice(column, column + 1)
        before, after = (LowRankDelta(x.B[:, one], x.A[one]).dense() for x in (delta, balanced))
        assert torch.equal(before, after)
    ratio = balanced.B.norm(dim=0) / balanced.A.norm(dim=1)
    assert ((ratio >= 0.49) & (ratio <= 2.01)).all()


def test_balancing_leaves_columns_of_zeros_alone() -> None:
    delta = LowRankDelta(torch.tensor([[0.0, 1.0, 4.0]]), torch.tensor([[5.0], [0.0], [1.0]]))
    balanced = delta.balanced()
    assert torch.equal(balanced.B, torch.tensor([[0.0, 1.0, 2.0]]))
    assert torch.equal(balanced.A, torch.tensor([[5.0], [0.0], [2.0]]))


@settings(max_examples=60, deadline=None)
@given(**SHAPES, keep=st.integers(1, 12))
def test_compression_is_the_truncated_svd(d_out: int, d_in: int, rank: int, seed: int, keep: int) -> None:
    delta = delta_of(d_out, d_in, rank, seed)
    U, S, Vh = torch.linalg.svd(delta.dense(), full_matrices=False)
    best = (U[:, :keep] * S[:keep]) @ Vh[:keep]
    compressed, error = delta.compressed(keep)
    assert compressed.rank <= keep and compressed.shape == delta.shape
    torch.testing.assert_close(compressed.dense(), best, rtol=1e-7, atol=1e-9)
    measured = float((delta.dense() - compressed.dense()).norm() / delta.dense().norm())
    assert error == pytest.approx(measured, abs=1e-7)


def test_compression_of_nothing_has_no_error() -> None:
    compressed, error = LowRankDelta(torch.zeros(3, 2), torch.ones(2, 4)).compressed(1)
    assert error == 0 and not compressed.dense().any() and compressed.B.dtype == torch.float32


@settings(max_examples=30, deadline=None)
@given(**SHAPES)
def test_the_norm_is_that_of_the_product(d_out: int, d_in: int, rank: int, seed: int) -> None:
    delta = delta_of(d_out, d_in, rank, seed)
    assert delta.norm() == pytest.approx(float(delta.dense().norm()), rel=1e-9)


def test_padding_and_trimming() -> None:
    delta = delta_of(4, 5, 2)
    padded = delta.padded(6)
    assert padded.rank == 6 and torch.equal(padded.dense(), delta.dense())
    assert not padded.B[:, 2:].any() and not padded.A[2:].any()
    trimmed = padded.trimmed(2)
    assert torch.equal(trimmed.B, delta.B) and torch.equal(trimmed.A, delta.A)
    assert torch.equal(delta.padded(2).B, delta.B)
    with pytest.raises(ValueError, match="rank 2 cannot be padded to 1"):
        delta.padded(1)


def test_concatenation_is_the_sum() -> None:
    deltas = [delta_of(4, 5, rank, seed=rank) for rank in (1, 3, 2)]
    whole = concatenated(deltas)
    assert whole.rank == 6
    torch.testing.assert_close(whole.dense(), deltas[0].dense() + deltas[1].dense() + deltas[2].dense())


def test_factors_that_do_not_multiply() -> None:
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(3, 5\)"):
        LowRankDelta(torch.ones(4, 2), torch.ones(3, 5))


def test_updates_are_summed_by_name_and_what_stands_alone_is_not_copied() -> None:
    one, two, other = (LowRankDelta(torch.randn(3, r), torch.randn(r, 4)) for r in (1, 2, 3))
    found = summed([{"a": one, "b": other}, {"a": two}])
    assert torch.equal(found["a"].dense(), concatenated([one, two]).dense())
    assert found["b"] is other and summed([]) == {}
