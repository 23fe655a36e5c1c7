"""The null-space update against AlphaEdit's formula written down densely, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_edit.errors import ComputationError
from hf_edit.solvers.null_space import null_space, null_space_solve
from hf_edit.solvers.ridge import Columns
from tests.solvers.updates import null_space_update


def moment(d_in: int, seed: int) -> Tensor:
    """A second moment whose eigenvalues fall by half each."""
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(d_in, d_in, generator=generator, dtype=torch.float64))[0]
    return (Q * 0.5 ** torch.arange(d_in)) @ Q.T


def problem(n: int, m: int, d_in: int, seed: int, d_out: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed + 1)
    K, R, K_p = (
        torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        for rows, columns in ((d_in, n), (d_out, n), (d_in, m))
    )
    return K, R, K_p


def dense(K: Tensor, R: Tensor, K_p: Tensor, U0: Tensor, beta: float) -> Tensor:
    """R K^T P ((K K^T + K_p K_p^T) P + beta I)^-1, (d_out, d_in)."""
    P = U0 @ U0.T
    inverse = torch.linalg.inv((K @ K.T + K_p @ K_p.T) @ P + beta * torch.eye(len(P), dtype=P.dtype))
    return R @ K.T @ P @ inverse


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 9),
    m=st.integers(0, 12),
    d_in=st.integers(3, 12),
    share=st.floats(0.05, 1),
    beta=st.floats(0.01, 100),
    seed=st.integers(0, 1000),
)
def test_it_is_the_published_update(n: int, m: int, d_in: int, share: float, beta: float, seed: int) -> None:
    """Tokens fewer than the basis, between it and the inputs, and more than either."""
    K, R, K_p = problem(n, m, d_in, seed)
    U0 = null_space(moment(d_in, seed), max(share, 0.5**d_in * 2))
    delta = null_space_update(K, R, K_p, U0, beta)
    assert delta.rank == min(n, 7, U0.shape[1])
    torch.testing.assert_close(delta.dense(), dense(K, R, K_p, U0, beta), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("d_out", "texts"), [(3, 1), (3, 2), (3, 6), (30, 6), (30, 20)])
def test_columns_added_text_by_text_give_the_same(d_out: int, texts: int) -> None:
    d_in = 20
    U0 = null_space(moment(d_in, seed=4), 1e-3)
    parts = [problem(n=2, m=3, d_in=d_in, seed=seed, d_out=d_out) for seed in range(texts)]
    columns = Columns(d_out, d_in)
    for part in parts:
        columns.add(*part)
    K, R, K_p = (torch.cat(side, dim=1) for side in zip(*parts, strict=True))
    found = null_space_solve(columns, U0, 0.3)
    torch.testing.assert_close(found.dense(), dense(K, R, K_p, U0, 0.3), rtol=1e-8, atol=1e-10)


def test_nothing_leaves_the_null_space() -> None:
    C = moment(12, seed=0)
    U0 = null_space(C, 0.01)
    delta = null_space_update(*problem(n=3, m=5, d_in=12, seed=0), U0, 0.1)
    outside = torch.eye(12, dtype=torch.float64) - U0 @ U0.T
    assert (delta.dense() @ outside).abs().max() < 1e-12


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_share_does_not_depend_on_the_scale(scale: float) -> None:
    """Eigenvalues 1, 1/2, 1/4 ...: the last ones hold half of the one before them."""
    U0 = null_space(scale * moment(10, seed=3), share=0.1)
    assert U0.shape == (10, 6)  # 2^-4 + ... + 2^-9 = 0.123 of 1.998; one more would be 0.248
    held = torch.trace(U0.T @ moment(10, seed=3) @ U0) / torch.trace(moment(10, seed=3))
    assert held <= 0.1
    torch.testing.assert_close(U0.T @ U0, torch.eye(6, dtype=torch.float64))


def test_the_whole_space_holds_the_whole_trace() -> None:
    assert null_space(moment(8, seed=1), share=1.0).shape == (8, 8)


def test_a_spectrum_without_a_tail() -> None:
    with pytest.raises(ComputationError, match="width 5 holds at most 0.1 .* smallest holds 0.2"):
        null_space(torch.eye(5), share=0.1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_moment_that_is_not_finite(value: float) -> None:
    with pytest.raises(ComputationError, match="width 3 is not finite"):
        null_space(torch.full((3, 3), value), share=0.1)


def test_a_moment_of_zero() -> None:
    with pytest.raises(ComputationError, match="width 3 is zero"):
        null_space(torch.zeros(3, 3), share=0.1)
