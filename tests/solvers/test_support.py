"""Updates on a few inputs against plain references, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_edit.errors import ComputationError
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.ridge import Columns, penalty
from hf_edit.solvers.support import (
    choose_support,
    on_columns,
    solve_on_support,
    solve_within,
    support_of_keys,
    touched_columns,
    whitened_on,
)


SIZES = {
    "n": st.integers(1, 12),
    "m": st.integers(0, 12),
    "d_in": st.integers(3, 12),
    "d_out": st.integers(1, 8),
    "seed": st.integers(0, 1000),
}


def problem(n: int, m: int, d_in: int, d_out: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, residuals, preserved keys and the penalty's matrix."""
    generator = torch.Generator().manual_seed(seed)
    K, R, P, X = (
        torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        for rows, columns in ((d_in, n), (d_out, n), (d_in, m), (d_in, 40))
    )
    return K, R, P, X @ X.T / 40


def collected(K: Tensor, R: Tensor, P: Tensor) -> Columns:
    """The columns, in two parts."""
    columns, half = Columns(len(R), len(K)), K.shape[1] // 2
    columns.add(K[:, :half], R[:, :half], P)
    columns.add(K[:, half:], R[:, half:], P[:, :0])
    return columns


def dense_on(K: Tensor, R: Tensor, P: Tensor, G: Tensor, support: Tensor) -> Tensor:
    """The ridge on the inputs `support`, written down."""
    inside = torch.linalg.solve(
        G[support][:, support] + K[support] @ K[support].T + P[support] @ P[support].T, K[support] @ R.T
    ).T
    dW = torch.zeros(len(R), len(K), dtype=torch.float64)
    dW[:, support] = inside
    return dW


def cost(dW: Tensor, K: Tensor, R: Tensor, P: Tensor, G: Tensor) -> float:
    return float((dW @ K - R).square().sum() + (dW @ P).square().sum() + (dW @ G @ dW.T).trace())


@settings(max_examples=60, deadline=None)
@given(**SIZES, share=st.floats(0.1, 1.0))
def test_on_a_support_it_is_the_ridge_there(n: int, m: int, d_in: int, d_out: int, seed: int, share: float) -> None:
    K, R, P, C = problem(n, m, d_in, d_out, seed)
    G = penalty(C, 0.7, ridge=0.01)
    count = max(1, round(share * d_in))
    support = torch.randperm(d_in, generator=torch.Generator().manual_seed(seed))[:count].sort().values
    delta = solve_on_support(collected(K, R, P), G, support)
    assert delta.rank == count
    torch.testing.assert_close(delta.dense(), dense_on(K, R, P, G.matrix(), support), rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(**SIZES)
def test_on_all_inputs_it_is_the_unrestricted_ridge(n: int, m: int, d_in: int, d_out: int, seed: int) -> None:
    K, R, P, C = problem(n, m, d_in, d_out, seed)
    G, columns = penalty(C, 0.7, ridge=0.01), collected(K, R, P)
    everywhere = solve_on_support(columns, G, torch.arange(d_in))
    torch.testing.assert_close(everywhere.dense(), columns.solve(G).dense(), rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(**SIZES, count=st.integers(1, 12))
def test_every_input_chosen_lowers_the_cost_the_most(
    n: int, m: int, d_in: int, d_out: int, seed: int, count: int
) -> None:
    """Against trying each one."""
    K, R, P, C = problem(n, m, d_in, d_out, seed)
    G = penalty(C, 0.7, ridge=0.01)
    chosen: list[int] = []
    for _ in range(min(count, d_in)):
        left = [c for c in range(d_in) if c not in chosen]
        costs = [cost(dense_on(K, R, P, G.matrix(), torch.tensor([*chosen, c])), K, R, P, G.matrix()) for c in left]
        chosen.append(left[costs.index(min(costs))])
    support = choose_support(collected(K, R, P), G, count)
    assert support.tolist() == sorted(chosen)


def test_an_input_without_keys_is_never_chosen() -> None:
    K, R, P, C = problem(6, 0, 8, 4, seed=0)
    K[3], C = 0, torch.eye(8, dtype=torch.float64)
    assert choose_support(collected(K, R, P), penalty(C, 1.0, ridge=0), 8).tolist() == [0, 1, 2, 4, 5, 6, 7]


def test_what_moves_with_everything_else_is_left_alone() -> None:
    """Two inputs say the same of the edit; the one that nothing else uses is taken."""
    K = torch.ones(2, 3, dtype=torch.float64)
    R, P = torch.ones(4, 3, dtype=torch.float64), torch.zeros(2, 0, dtype=torch.float64)
    C = torch.diag(torch.tensor([5.0, 0.1], dtype=torch.float64))
    assert choose_support(collected(K, R, P), penalty(C, 1.0, ridge=0), 1).tolist() == [1]


def test_nothing_to_explain_is_an_error() -> None:
    K, R, P, C = problem(4, 0, 6, 3, seed=0)
    with pytest.raises(ComputationError, match="No input"):
        choose_support(collected(K, torch.zeros_like(R), P), penalty(C, 1.0, ridge=0.01), 3)
    singular = penalty(C, 1.0, ridge=0.01)
    singular.factor[0, 0] = torch.nan
    with pytest.raises(ComputationError, match="singular"):
        solve_on_support(collected(K, R, P), singular, torch.tensor([0, 1]))


@pytest.mark.parametrize("n", [2, 5, 20])
@pytest.mark.parametrize("m", [0, 20])
def test_sums_of_columns(n: int, m: int) -> None:
    """However far they are summed up already."""
    K, R, P, _ = problem(n, m, 8, 4, seed=1)
    gram, cross = collected(K, R, P).sums()
    torch.testing.assert_close(gram, K @ K.T + P @ P.T)
    torch.testing.assert_close(cross, R @ K.T)


def test_columns_and_selection_are_each_others_inverse() -> None:
    values, indices = torch.randn(4, 3), torch.tensor([1, 5, 6])
    delta = on_columns(values, indices, 9)
    dense = torch.zeros(4, 9)
    dense[:, indices] = values
    assert torch.equal(delta.dense(), dense)
    for form in (delta, delta.balanced()):
        found, there = touched_columns(form)
        assert torch.equal(found, indices) and torch.equal(there, values)


def test_columns_touched_by_factors_of_any_form() -> None:
    A = torch.zeros(2, 6)
    A[:, [4, 2]] = torch.randn(2, 2)
    delta = LowRankDelta(torch.randn(3, 2), A)
    indices, values = touched_columns(delta)
    assert indices.tolist() == [2, 4]
    torch.testing.assert_close(values, delta.dense()[:, [2, 4]])
    indices, values = touched_columns(LowRankDelta(torch.zeros(3, 1), torch.zeros(1, 6)))
    assert indices.tolist() == [0] and not values.any()


@settings(max_examples=60, deadline=None)
@given(**SIZES, count=st.integers(1, 12), fixed=st.integers(0, 3))
def test_every_input_chosen_sees_the_most_of_the_keys(
    n: int, m: int, d_in: int, d_out: int, seed: int, count: int, fixed: int
) -> None:
    """Against trying each one, behind those that are there already."""
    K, _, _, C = problem(n, m, d_in, d_out, seed)

    def seen(S: list[int]) -> float:
        return float((K[S].T @ torch.linalg.solve(C[S][:, S], K[S])).trace())

    chosen = list(range(d_in))[-fixed:] if fixed else []
    while len(chosen) < min(count, d_in):
        chosen.append(max((c for c in range(d_in) if c not in chosen), key=lambda c: seen([*chosen, c])))
    there = torch.arange(d_in)[-fixed:] if fixed else None
    assert support_of_keys(K, C, count, there).tolist() == sorted(chosen)


def test_keys_that_reach_nothing_are_an_error() -> None:
    K, _, _, C = problem(4, 0, 6, 3, seed=0)
    with pytest.raises(ComputationError, match="zero at every input"):
        support_of_keys(torch.zeros_like(K), C, 3)


def test_whitened_coordinates_on_a_support() -> None:
    _, R, _, C = problem(4, 0, 6, 3, seed=0)
    S = torch.tensor([1, 4, 5])
    A, L = whitened_on(C, S)
    torch.testing.assert_close(A @ C @ A.T, torch.eye(3, dtype=C.dtype))
    assert not A[:, [0, 2, 3]].any()
    dW = torch.zeros(3, 6, dtype=C.dtype)
    dW[:, S] = R[:, :3]
    B = dW[:, S] @ L
    torch.testing.assert_close(B @ A, dW)
    torch.testing.assert_close((dW @ C @ dW.T).trace(), B.square().sum())
    with pytest.raises(ComputationError, match="singular on 3 inputs"):
        whitened_on(torch.zeros_like(C), S)


def test_a_solve_within_a_budget() -> None:
    K, R, P, C = problem(6, 3, 8, 4, seed=2)
    G, columns = penalty(C, 0.7, ridge=0.01), collected(K, R, P)
    assert torch.equal(solve_within(columns, G, None).dense(), columns.solve(G).dense())
    expected = solve_on_support(columns, G, choose_support(columns, G, 3))
    assert torch.equal(solve_within(columns, G, 3).dense(), expected.dense())
