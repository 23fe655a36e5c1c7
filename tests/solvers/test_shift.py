"""The ridge shift against the normal equations, and its gradients against autograd through them, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_edit.errors import ComputationError
from hf_edit.solvers.shift import KeySolve, Protected, Ridge


D_IN, D_OUT = 9, 5
COUNTS = [1, 4, D_IN - 1, D_IN, D_IN + 1, 30]
"""Rows of a solve: in the space of the rows, at the border, in the space of the inputs."""


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def protecting(*counts: int, weight: float = 1.0) -> Protected:
    """Keys protected portion by portion."""
    protected = Protected(D_IN)
    for portion, count in enumerate(counts):
        protected.add(randn(count, D_IN, seed=100 + portion), weight)
    return protected


def dense(K: Tensor, D: Tensor, G: Tensor) -> Tensor:
    """dW = D^T K (G + K^T K)^-1, (d_out, d_in)."""
    return torch.linalg.solve(G + K.T @ K, K.T @ D).T


@pytest.mark.parametrize("counts", [(), (3,), (2, 4, 1), (D_IN,), (20, 3)])
@pytest.mark.parametrize("n", COUNTS)
def test_the_shift_solves_the_normal_equations(n: int, counts: tuple[int, ...]) -> None:
    K, D, ridge = randn(n, D_IN, seed=1), randn(n, D_OUT, seed=2), Ridge(protecting(*counts), 0.3)
    past = [randn(count, D_IN, seed=100 + portion) for portion, count in enumerate(counts)]
    G = 0.3 * (torch.eye(D_IN, dtype=torch.float64) + sum(k.T @ k for k in past))
    torch.testing.assert_close(ridge.matrix(), G, rtol=1e-12, atol=1e-12)
    solve = KeySolve(K, ridge)
    delta = solve.delta(D)
    assert delta.shape == (D_OUT, D_IN) and delta.rank == min(n, D_OUT)
    torch.testing.assert_close(delta.dense(), dense(K, D, G), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(solve.A, torch.linalg.solve(G + K.T @ K, K.T).T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n", COUNTS)
def test_what_is_unmet_is_what_the_shift_leaves_of_the_changes(n: int) -> None:
    K, D = randn(n, D_IN, seed=1), randn(n, D_OUT, seed=2)
    solve = KeySolve(K, Ridge(protecting(3, weight=0.5), 2.0))
    left = D - K @ solve.delta(D).dense().T
    torch.testing.assert_close(solve.unmet(D), left, rtol=1e-10, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 14),
    d_in=st.integers(1, 10),
    d_out=st.integers(1, 6),
    past=st.lists(st.integers(0, 12), max_size=3),
    weight=st.floats(1e-3, 1e3),
    seed=st.integers(0, 1000),
)
def test_both_spaces_give_the_same_shift(
    n: int, d_in: int, d_out: int, past: list[int], weight: float, seed: int
) -> None:
    """The dual written down against whichever of the two is taken."""
    K, D = randn(n, d_in, seed=seed), randn(n, d_out, seed=seed + 1)
    protected = Protected(d_in)
    for portion, count in enumerate(past):
        protected.add(randn(count, d_in, seed=seed + 2 + portion))
    ridge = Ridge(protected, weight)
    G = ridge.matrix()
    C = torch.eye(n, dtype=torch.float64) + K @ torch.linalg.solve(G, K.T)
    dual = torch.linalg.solve(C, D).T @ torch.linalg.solve(G, K.T).T
    solve = KeySolve(K, ridge)
    torch.testing.assert_close(solve.delta(D).dense(), dual, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(solve.delta(D).dense(), dense(K, D, G), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(solve.unmet(D), torch.linalg.solve(C, D), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("counts", [(), (4,), (20,)])
@pytest.mark.parametrize("n", COUNTS)
def test_gradients_are_those_of_autograd_through_the_dense_solve(n: int, counts: tuple[int, ...]) -> None:
    K, X, y = randn(n, D_IN, seed=1), randn(11, D_IN, seed=3), randn(11, D_OUT, seed=4)
    D, log_lambda = randn(n, D_OUT, seed=2).requires_grad_(), torch.tensor(-0.7).double().requires_grad_()
    protected = protecting(*counts)
    shift = dense(K, D, log_lambda.exp() * protected.matrix())
    loss = (X @ shift.T - y).square().sum()  # any loss of the shifted map
    by_D, by_lambda, by_shift = torch.autograd.grad(loss, [D, log_lambda, shift])

    solve = KeySolve(K, Ridge(protected, float(log_lambda.detach().exp())))
    gradient = solve.A @ by_shift.T
    torch.testing.assert_close(gradient, by_D, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(solve.log_lambda_gradient(gradient, D.detach()), by_lambda, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("n", [3, 20])
def test_the_left_factor_as_a_leaf_gets_the_gradient_of_the_changes(n: int) -> None:
    K, X = randn(n, D_IN, seed=1), randn(11, D_IN, seed=3)
    solve = KeySolve(K, Ridge(protecting(2), 1.5))
    D = randn(n, D_OUT, seed=2)
    B = D.T.clone().requires_grad_()
    shift = (B @ solve.A).requires_grad_()
    (X @ shift.T).pow(3).sum().backward(inputs=[B])
    (by_shift,) = torch.autograd.grad((X @ shift.T).pow(3).sum(), shift)
    assert B.grad is not None
    torch.testing.assert_close(B.grad.T, solve.A @ by_shift.T, rtol=1e-10, atol=1e-10)


def test_the_norm_follows_without_the_product() -> None:
    """|dW|^2 = <E, D> / lambda - |E|^2 / lambda, E = C^-1 D with C = I + K K^T / lambda."""
    K, D, weight = randn(4, D_IN, seed=1), randn(4, D_OUT, seed=2), 0.4
    solve = KeySolve(K, Ridge(Protected(D_IN), weight))
    E = solve.unmet(D)
    expected = float((E * D).sum() - E.square().sum()) / weight
    assert solve.delta(D).norm() ** 2 == pytest.approx(expected, rel=1e-10)


def test_the_inverse_follows_through_many_additions() -> None:
    """Of few keys by Woodbury, of many by their Gram matrix, of a moment: all in one sum."""
    protected, Q = Protected(D_IN), torch.eye(D_IN, dtype=torch.float64)
    eye = torch.eye(D_IN, dtype=torch.float64)
    for portion in range(60):
        count, weight = (1, 3, D_IN, 25, 0)[portion % 5], (0.01, 1.0, 50.0)[portion % 3]
        K = randn(count, D_IN, seed=portion)
        protected.add(K, weight)
        Q += weight * K.T @ K
        if portion == 30:
            moment = randn(D_IN, 40, seed=999)
            protected.add_moment(moment @ moment.T, 0.2)
            Q += 0.2 * moment @ moment.T
        torch.testing.assert_close(protected.matrix(), Q, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(protected.solve(eye), torch.linalg.inv(Q), rtol=1e-8, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_portions_do_not_matter(counts: list[int], seed: int) -> None:
    K, X = randn(sum(counts), D_IN, seed=seed), randn(D_IN, 3, seed=seed + 1)
    portions, whole = Protected(D_IN), Protected(D_IN)
    for part in K.split(counts):
        portions.add(part, 0.7)
    whole.add(K, 0.7)
    torch.testing.assert_close(portions.solve(X), whole.solve(X), rtol=1e-8, atol=1e-10)


def test_nothing_protected_is_the_identity() -> None:
    protected, X = Protected(D_IN), randn(D_IN, 4, seed=0)
    protected.add(randn(3, D_IN, seed=1), 0.0)
    protected.add(randn(0, D_IN, seed=1))
    assert torch.equal(protected.matrix(), torch.eye(D_IN, dtype=torch.float64))
    assert torch.equal(protected.solve(X), X)


def test_protected_keys_keep_their_outputs() -> None:
    """The more they weigh, the less a shift moves them; its own keys go on moving."""
    past, K, D = randn(3, D_IN, seed=5), randn(3, D_IN, seed=1), randn(3, D_OUT, seed=2)
    moved, met = [], []
    for weight in (0.0, 1.0, 1e6):
        protected = Protected(D_IN)
        protected.add(past, weight)
        shift = KeySolve(K, Ridge(protected, 1e-3)).delta(D).dense()
        moved.append(float((past @ shift.T).norm()))
        met.append(float((K @ shift.T - D).norm()))
    assert moved[0] > 3 * moved[1] > 300 * moved[2] and max(met) < 0.1 * float(D.norm())


def test_keys_of_one_direction_share_what_they_ask() -> None:
    """The same key many times over, more rows than inputs: the mean of what is asked of it."""
    key, D = randn(1, D_IN, seed=1), randn(30, D_OUT, seed=2)
    shift = KeySolve(key.expand(30, -1), Ridge(Protected(D_IN), 1e-9)).delta(D).dense()
    torch.testing.assert_close((key @ shift.T)[0], D.mean(dim=0), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("n", [2, 20])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_keys_that_are_not_finite_are_named(n: int, bad: float) -> None:
    K = randn(n, D_IN, seed=1)
    K[0, 0] = bad
    with pytest.raises(ComputationError, match="keys that are not finite"):
        KeySolve(K, Ridge(Protected(D_IN), 1.0))
    with pytest.raises(ComputationError, match="keys that are not finite"):
        Protected(D_IN).add(K)


def test_half_precision_keys_are_solved_in_double() -> None:
    K, D = randn(4, D_IN, seed=1).half(), randn(4, D_OUT, seed=2).half()
    delta = KeySolve(K, Ridge(Protected(D_IN), 1.0)).delta(D)
    assert delta.B.dtype == delta.A.dtype == torch.float64
    expected = dense(K.double(), D.double(), torch.eye(D_IN, dtype=torch.float64))
    torch.testing.assert_close(delta.dense(), expected, rtol=1e-10, atol=1e-12)
