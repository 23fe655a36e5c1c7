"""Activation-weighted compression against dense solutions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_edit.solvers.weighted import compressed_on


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    d_out=st.integers(1, 9),
    d_in=st.integers(1, 9),
    n=st.integers(1, 25),
    rank=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_no_other_update_of_that_rank_is_closer_on_the_inputs(
    d_out: int, d_in: int, n: int, rank: int, seed: int
) -> None:
    dW, X = random(d_out, d_in, seed=seed), random(d_in, n, seed=seed + 1)
    delta, error = compressed_on(dW, X, rank)
    assert delta.shape == (d_out, d_in) and delta.rank <= rank
    # Eckart-Young: the outputs themselves have no better approximation of that rank
    S = torch.linalg.svdvals(dW @ X)
    assert float((dW @ X - delta.dense() @ X).norm()) == pytest.approx(float(S[rank:].norm()), abs=1e-9)
    assert error == pytest.approx(float(S[rank:].norm() / S.norm()), abs=1e-12)


def test_it_equals_the_solution_by_the_root_of_the_second_moment() -> None:
    """SVD of dW C^1/2, truncated, and C^-1/2 behind it: what one writes down where C is regular."""
    dW, X = random(6, 5, seed=0), random(5, 40, seed=1)
    values, vectors = torch.linalg.eigh(X @ X.T)
    root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    U, S, Vh = torch.linalg.svd(dW @ root)
    expected = (U[:, :2] * S[:2]) @ Vh[:2] @ inverse
    delta, _ = compressed_on(dW, X, 2)
    torch.testing.assert_close(delta.dense(), expected, rtol=1e-9, atol=1e-9)


def test_it_beats_the_plain_svd_where_it_counts() -> None:
    dW, X = random(20, 30, seed=0), random(30, 3, seed=1) @ random(3, 200, seed=2)
    delta, error = compressed_on(dW, X, 3)
    U, S, Vh = torch.linalg.svd(dW)
    plain = (U[:, :3] * S[:3]) @ Vh[:3]
    assert error < 1e-12  # the inputs span three directions
    assert float(((dW - plain) @ X).norm() / (dW @ X).norm()) > 0.5
    assert float((dW - delta.dense()).norm()) > 1  # elsewhere it is far off, which does not count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_to_compress(dtype: torch.dtype) -> None:
    delta, error = compressed_on(torch.zeros(3, 4, dtype=dtype), torch.ones(4, 2, dtype=dtype), 2)
    assert error == 0 and not delta.dense().any() and delta.B.dtype == torch.float64
