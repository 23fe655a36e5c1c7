"""The joint solve against plain dense least squares, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_edit.errors import ComputationError
from hf_edit.solvers.joint import JointSolve


RIDGE = 1e-4


def problem(d_out: int, d_in: int, tokens: list[int], seed: int):
    """C and, for every edit, keys (n, d_in) and values (n, d_out)."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(3 * d_in, d_in, generator=generator, dtype=torch.float64)
    edits = [
        (
            torch.randn(n, d_in, generator=generator, dtype=torch.float64),
            torch.randn(n, d_out, generator=generator, dtype=torch.float64),
        )
        for n in tokens
    ]
    return X.T @ X / len(X), edits


def dense(C: torch.Tensor, weight: float, edits, held=()) -> torch.Tensor:
    """argmin by stacking every term of the loss as rows of one least-squares problem."""
    ridged = C + RIDGE * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)
    root = torch.linalg.cholesky(ridged).T * weight**0.5  # root^T root = lambda C
    d_out = edits[0][1].shape[1]
    left = torch.cat([root, *[K for K, _ in edits], *[w**0.5 * K for K, w in held]])
    zeros = [torch.zeros(len(root), d_out), *[V for _, V in edits], *[torch.zeros(len(K), d_out) for K, _ in held]]
    return torch.linalg.lstsq(left, torch.cat([z.double() for z in zeros])).solution.T


@pytest.mark.parametrize("d_in", [3, 12])
def test_each_token_may_have_a_weight_of_its_own(d_in: int) -> None:
    C, edits = problem(4, d_in, [5, 2], seed=3)
    weights = [torch.tensor([1.0, 8.0, 0.5, 64.0, 2.0], dtype=torch.float64), torch.tensor([3.0, 1.0])]
    solve = JointSolve(4, C, RIDGE)
    for (K, V), w in zip(edits, weights, strict=True):
        solve.add(K, V, w)
    scaled = [
        (w[:, None].double().sqrt() * K, w[:, None].double().sqrt() * V)
        for (K, V), w in zip(edits, weights, strict=True)
    ]
    delta, _ = solve.solve(7.0, 10**6)
    expected = dense(C, 7.0, scaled)
    assert float((delta.dense() - expected).norm()) <= 1e-9 * float(expected.norm())


def solved(C: torch.Tensor, weight: float, edits, held=(), rank: int = 10**6):
    solve = JointSolve(edits[0][1].shape[1], C, RIDGE)
    for K, V in edits:
        solve.add(K, V)
    for K, w in held:
        solve.add(K, K.new_zeros(len(K), edits[0][1].shape[1]), w)
    return solve.solve(weight, rank)


@settings(max_examples=30, deadline=None)
@given(
    d_out=st.integers(1, 9),
    d_in=st.integers(1, 12),
    tokens=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    weight=st.floats(1e-2, 1e3),
    seed=st.integers(0, 10**6),
)
def test_it_is_the_least_squares_solution(d_out: int, d_in: int, tokens: list[int], weight: float, seed: int) -> None:
    C, edits = problem(d_out, d_in, tokens, seed)
    held = [(edits[0][0].flip(1), 2.5)]
    delta, error = solved(C, weight, edits, held)
    expected = dense(C, weight, edits, held)
    assert delta.rank <= min(d_out, d_in)
    assert error == pytest.approx(0, abs=1e-6)
    assert float((delta.dense() - expected).norm()) <= 1e-9 * max(1.0, float(expected.norm()))


def test_the_order_of_edits_is_of_no_consequence() -> None:
    C, edits = problem(5, 8, [3, 9, 1], seed=1)
    forward, _ = solved(C, 2.0, edits)
    backward, _ = solved(C, 2.0, edits[::-1])
    assert torch.allclose(forward.dense(), backward.dense(), rtol=0, atol=1e-12)


def test_a_light_second_moment_gives_the_values_and_a_heavy_one_nothing() -> None:
    C, [(K, V)] = problem(4, 10, [6], seed=2)
    light, _ = solved(C, 1e-9, [(K, V)])
    heavy, _ = solved(C, 1e9, [(K, V)])
    assert torch.allclose(K @ light.dense().T, V, atol=1e-6)
    assert float((K @ heavy.dense().T).abs().max()) < 1e-6


def test_a_bounded_rank_costs_what_it_says_and_no_more_than_any_other_update_of_that_rank() -> None:
    C, edits = problem(6, 9, [20], seed=3)
    full, _ = solved(C, 0.5, edits)
    bounded, error = solved(C, 0.5, edits, rank=2)
    assert bounded.rank == 2
    K = edits[0][0]
    metric = torch.linalg.cholesky(0.5 * (C + RIDGE * C.diagonal().mean() * torch.eye(9, dtype=C.dtype)) + K.T @ K)

    def distance(dW: torch.Tensor) -> float:
        return float(((dW - full.dense()) @ metric).norm() / (full.dense() @ metric).norm())

    assert distance(bounded.dense()) == pytest.approx(error, rel=1e-9)
    assert 0 < error < distance(full.compressed(2)[0].dense())


def test_no_values_make_no_update() -> None:
    C, [(K, V)] = problem(4, 10, [6], seed=2)
    delta, error = solved(C, 1.0, [(K, torch.zeros_like(V))])
    assert (delta.rank, error) == (0, 0.0)


def test_keys_that_are_not_finite_are_refused() -> None:
    C, [(K, V)] = problem(4, 10, [6], seed=2)
    K[0, 0] = float("nan")
    with pytest.raises(ComputationError, match="not positive definite"):
        solved(C, 1.0, [(K, V)])
