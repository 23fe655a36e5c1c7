"""The directions of polish: orthonormal once whitened, the leading ones, and what a start needs among them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_edit.solvers.key_basis import Keys, key_basis


D = 12


def random(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(d: int = D, tokens: int = 40) -> tuple[Tensor, Tensor]:
    """A second moment C whose eigenvalues span two orders of magnitude, and its Cholesky factor."""
    Z = random(tokens, d, 99) * torch.logspace(0, -1, d, dtype=torch.float64)
    C = Z.T @ Z / tokens
    return C, torch.linalg.cholesky(C)


def basis(K: Tensor, L: Tensor, rank: int, fixed: Tensor | None = None, at_once: int = 5) -> Tensor:
    keys = Keys(K.shape[0])
    for part in K.split(at_once, dim=1):
        keys.add(part)
    return key_basis(keys, L, rank, fixed)


def whitened_energies(K: Tensor, C: Tensor, outside: Tensor | None = None) -> Tensor:
    """Eigenvalues of C^-1/2 K K^T C^-1/2, largest first, without the directions of the rows `outside`."""
    values, vectors = torch.linalg.eigh(C)
    W = vectors / values.sqrt() @ vectors.T
    X = W @ K
    if outside is not None:
        Q = torch.linalg.qr((outside @ torch.linalg.inv(W)).T)[0]
        X = X - Q @ (Q.T @ X)
    return torch.linalg.eigvalsh(X @ X.T).flip(0).clamp_min(0)


def energies(A: Tensor, K: Tensor) -> Tensor:
    """How much of the whitened keys each row reaches."""
    return (A @ K).square().sum(dim=1)


# below and above half the width, where keys are kept as columns and as a Gram matrix
counts = st.integers(1, 20)


@settings(max_examples=60, deadline=None)
@given(counts, st.integers(1, 2 * D), st.integers(0, 1000))
def test_the_leading_directions_of_the_whitened_keys(n: int, rank: int, seed: int) -> None:
    C, L = moment()
    K = random(D, n, seed)
    A = basis(K, L, rank)
    assert A.shape == (min(rank, n, D), D)
    assert (A @ C @ A.T - torch.eye(len(A))).abs().max() < 1e-9
    # in order, and together no less than any other directions could reach
    expected = whitened_energies(K, C)[: len(A)]
    assert torch.allclose(energies(A, K), expected, rtol=1e-6, atol=1e-9 * float(expected[0]))


@settings(max_examples=60, deadline=None)
@given(counts, st.integers(1, 2 * D), st.integers(1, 5), st.integers(0, 1000))
def test_a_start_is_expressible_and_counts_as_part_of_the_rank(n: int, rank: int, p: int, seed: int) -> None:
    C, L = moment()
    K, fixed = random(D, n, seed), random(p, D, seed + 1)
    A = basis(K, L, rank, fixed)
    assert len(A) == max(p, min(rank, p + n, D))
    assert (A @ C @ A.T - torch.eye(len(A))).abs().max() < 1e-9
    assert (fixed @ C @ A.T @ A - fixed).abs().max() < 1e-9
    expected = whitened_energies(K, C, fixed)[: len(A) - p]
    assert torch.allclose(energies(A[p:], K), expected, rtol=1e-6, atol=1e-9 * float(energies(A, K).sum()))


@settings(max_examples=40, deadline=None)
@given(counts, st.integers(1, 2 * D), st.integers(0, 1000))
def test_a_start_that_has_all_directions_gets_no_more(n: int, rank: int, seed: int) -> None:
    """Polishing what polish made: what is left of the keys is rounding, which is no direction."""
    C, L = moment()
    K = random(D, n, seed)
    A = basis(K, L, rank)
    again = basis(K, L, rank, fixed=A)
    assert again.shape == A.shape
    assert (again @ C @ again.T - torch.eye(len(A))).abs().max() < 1e-9
    assert (A @ C @ again.T @ again - A).abs().max() < 1e-9


def test_a_start_with_dependent_and_empty_rows() -> None:
    """As in a pack whose factors are padded to one rank."""
    C, L = moment()
    rows = random(2, D, 3)
    fixed = torch.cat([rows, rows.sum(0, keepdim=True), torch.zeros(3, D)])
    A = basis(random(D, 3, 4), L, 4, fixed)
    assert A.shape == (4, D)
    assert (A @ C @ A.T - torch.eye(4)).abs().max() < 1e-9
    assert (fixed @ C @ A.T @ A - fixed).abs().max() < 1e-9
    assert basis(random(D, 3, 4), L, 2, torch.zeros(2, D)).shape == (2, D)
    assert basis(random(D, 3, 4), L, 2, torch.zeros(0, D)).shape == (2, D)


def test_repeated_keys_span_no_more() -> None:
    C, L = moment()
    K = random(D, 3, 0)
    A = basis(K.repeat(1, 9), L, 8)
    assert A.shape == (3, D)
    assert (A @ C @ A.T - torch.eye(3)).abs().max() < 1e-9


def test_keys_of_zero_have_no_direction() -> None:
    _, L = moment()
    for n in (2, 20):
        assert basis(torch.zeros(D, n, dtype=torch.float64), L, 4).shape == (0, D)


def test_columns_and_gram_matrix_give_the_same_directions() -> None:
    """The same keys, a quarter of them beside copies that tip the count over half of the width."""
    _, L = moment()
    K = random(D, 5, 7)
    few, many = basis(K, L, 5), basis(K.repeat(1, 4) / 2, L, 5)
    signs = (few * many).sum(dim=1).sign()
    assert (few - signs[:, None] * many).abs().max() < 1e-6


def test_half_precision_keys_are_summed_in_float64() -> None:
    _, L = moment()
    K = random(D, 20, 1).to(torch.bfloat16)
    A = basis(K, L, 3)
    assert A.dtype == torch.float64
    assert torch.allclose(A, basis(K.double(), L, 3))
