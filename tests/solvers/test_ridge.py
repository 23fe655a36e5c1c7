"""The ridge update against the normal equations written down densely, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_edit.errors import ComputationError
from hf_edit.solvers.ridge import Columns, Penalty, penalty
from tests.solvers.updates import ridge_update


SIZES = {"n": st.integers(1, 5), "m": st.integers(0, 8), "d_in": st.integers(3, 12), "seed": st.integers(0, 1000)}


def problem(n: int, m: int, d_in: int, seed: int, tokens: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, residuals, preserved keys and a second moment over `tokens` inputs, singular if they are few."""
    generator = torch.Generator().manual_seed(seed)
    K, R, K_p, X = (
        torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        for rows, columns in ((d_in, n), (7, n), (d_in, m), (d_in, tokens))
    )
    return K, R, K_p, X @ X.T / tokens


def dense(K: Tensor, R: Tensor, K_p: Tensor, G: Tensor) -> Tensor:
    """R K^T (G + K K^T + K_p K_p^T)^-1, (d_out, d_in)."""
    return torch.linalg.solve(G + K @ K.T + K_p @ K_p.T, K @ R.T).T


@settings(max_examples=60, deadline=None)
@given(**SIZES, weight=st.floats(0.01, 100))
def test_it_solves_the_normal_equations(n: int, m: int, d_in: int, seed: int, weight: float) -> None:
    """More tokens than inputs and fewer: both ways of solving."""
    K, R, K_p, C = problem(n, m, d_in, seed)
    G = penalty(C, weight, ridge=0)
    delta = ridge_update(K, R, K_p, G)
    expected = dense(K, R, K_p, weight * C)
    assert delta.rank == min(n, d_in) and delta.shape == (7, d_in)
    assert n > d_in or torch.equal(delta.B, R)
    torch.testing.assert_close(delta.dense(), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("n", "m", "d_in"), [(2, 1, 12), (2, 10, 12), (5, 8, 12), (5, 7, 12), (5, 6, 12), (5, 0, 3)])
def test_both_ways_of_solving_agree_where_they_meet(n: int, m: int, d_in: int) -> None:
    K, R, K_p, C = problem(n, m, d_in, seed=3)
    delta = ridge_update(K, R, K_p, penalty(C, 2.0, ridge=0))
    torch.testing.assert_close(delta.dense(), dense(K, R, K_p, 2.0 * C), rtol=1e-9, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=6).filter(
        lambda texts: any(n for n, _ in texts)
    ),
    d_out=st.integers(1, 8),
    d_in=st.integers(2, 16),
    seed=st.integers(0, 1000),
)
def test_columns_added_text_by_text_give_the_same(
    texts: list[tuple[int, int]], d_out: int, d_in: int, seed: int
) -> None:
    """Fewer tokens than inputs and more, fewer keys than outputs and more, and crossing over at any text."""
    G = penalty(problem(n=1, m=0, d_in=d_in, seed=seed)[3], 0.8, ridge=0.01)
    generator = torch.Generator().manual_seed(seed)
    columns = Columns(d_out, d_in)
    parts = []
    for n, m in texts:
        K, P = (torch.randn(d_in, count, generator=generator, dtype=torch.float64) for count in (n, m))
        R = torch.randn(d_out, n, generator=generator, dtype=torch.float64)
        parts.append((K, R, P))
        columns.add(K, R, P)
    K, R, P = (torch.cat(side, dim=1) for side in zip(*parts, strict=True))
    streamed, whole = columns.solve(G), ridge_update(K, R, P, G)
    assert streamed.rank <= min(K.shape[1], d_out, d_in)
    torch.testing.assert_close(streamed.dense(), dense(K, R, P, G.matrix()), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(streamed.dense(), whole.dense(), rtol=1e-7, atol=1e-9)


def test_columns_are_held_no_larger_than_the_solve_needs() -> None:
    columns = Columns(d_out=3, d_in=10)
    held = []
    for _ in range(8):
        columns.add(torch.randn(10, 2), torch.randn(3, 2), torch.randn(10, 3))
        lists, matrices = vars(columns).values(), (columns._gram, columns._cross)
        held.append(
            sum(t.numel() for part in lists if isinstance(part, list) for t in part)
            + sum(m.numel() for m in matrices if m is not None)
        )
    assert held[0] == 5 * 10 + 2 * 3  # the columns themselves
    assert held[1:] == [10 * 10 + 3 * 10] * 7


@settings(max_examples=30, deadline=None)
@given(**SIZES)
def test_a_ridge_makes_a_singular_moment_solvable(n: int, m: int, d_in: int, seed: int) -> None:
    K, R, K_p, C = problem(n, m, d_in, seed, tokens=1)
    ridge = 0.01
    ridged = C + ridge * C.diagonal().mean() * torch.eye(d_in, dtype=torch.float64)
    delta = ridge_update(K, R, K_p, penalty(C, 0.5, ridge))
    torch.testing.assert_close(delta.dense(), dense(K, R, K_p, 0.5 * ridged), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("d_in", [4, 30])
def test_the_gradient_of_the_objective_vanishes(d_in: int) -> None:
    """The closed form really minimises what the module says it minimises."""
    K, R, K_p, C = problem(n=3, m=4, d_in=d_in, seed=5)
    G = penalty(C, 0.7, ridge=0.01)
    W = ridge_update(K, R, K_p, G).dense().requires_grad_()
    objective = (W @ K - R).square().sum() + (W @ K_p).square().sum() + torch.trace(W @ G.matrix() @ W.T)
    (gradient,) = torch.autograd.grad(objective, [W])
    assert gradient.abs().max() < 1e-10


@pytest.mark.parametrize("d_in", [4, 30])
def test_a_smaller_lambda_leaves_less_of_the_residual(d_in: int) -> None:
    K, R, _, C = problem(n=3, m=0, d_in=d_in, seed=1)
    left = [
        float((ridge_update(K, R, K[:, :0], penalty(C, weight, ridge=0)).dense() @ K - R).norm())
        for weight in (100.0, 1.0, 0.01, 1e-6)
    ]
    assert left == sorted(left, reverse=True) and len(set(left)) == 4
    assert left[-1] < 1e-3 * left[0]


def test_preserved_keys_are_kept() -> None:
    K, R, K_p, C = problem(n=2, m=3, d_in=20, seed=2)
    G = penalty(C, 1e-6, ridge=0)
    without = ridge_update(K, R, K_p[:, :0], G).dense() @ K_p
    kept = ridge_update(K, R, 1e3 * K_p, G).dense() @ K_p
    assert kept.norm() < 1e-3 * without.norm()


def test_the_solve_is_in_float64_whatever_comes_in() -> None:
    K, R, K_p, C = problem(n=2, m=3, d_in=9, seed=2)
    delta = ridge_update(K.float(), R.float(), K_p.float(), penalty(C.float(), 1.0, ridge=0))
    assert delta.A.dtype == delta.B.dtype == torch.float64
    torch.testing.assert_close(delta.dense(), dense(K, R, K_p, C), rtol=1e-4, atol=1e-5)


def test_a_penalty_is_its_weight_times_the_moment() -> None:
    C = problem(n=1, m=0, d_in=5, seed=0)[3]
    found = penalty(C, 3.0, ridge=0.5)
    G = 3.0 * (C + 0.5 * C.diagonal().mean() * torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(found.matrix(), G)
    X = torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(found.solve(X), torch.linalg.solve(G, X))
    assert isinstance(found, Penalty)


@pytest.mark.parametrize(
    "C",
    [
        torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0])),
        torch.full((4, 4), float("nan")),
        torch.diag(torch.tensor([1.0, float("inf"), 1.0, 1.0])),
    ],
    ids=["indefinite", "nan", "infinite"],
)
def test_a_moment_that_cannot_be_solved_with(C: Tensor) -> None:
    with pytest.raises(ComputationError, match="width 4 .*(ridge 0.001|not finite)"):
        penalty(C, 1.0, ridge=1e-3)


def test_a_moment_of_nothing() -> None:
    with pytest.raises(ComputationError, match="width 4 is zero") as caught:
        penalty(torch.zeros(4, 4), 1.0, ridge=1e-3)
    assert "other layers" in caught.value.remedy
