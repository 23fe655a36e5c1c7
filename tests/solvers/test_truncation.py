"""Fewer columns, best for the weights or best for what goes through them."""

from __future__ import annotations

import torch

from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.truncation import truncated


def problem() -> tuple[LowRankDelta, torch.Tensor]:
    """A delta of falling singular values and a second moment far from the identity."""
    B, A = torch.randn(12, 6) * torch.logspace(0, -2, 6), torch.randn(6, 20)
    X = torch.randn(20, 200).double() * torch.logspace(1, -2, 20).double()[:, None]
    return LowRankDelta(B, A), X @ X.T / 200


def lost(delta: LowRankDelta, smaller: LowRankDelta, C: torch.Tensor) -> float:
    """tr(D C D^T)^1/2 of the difference, relative, written down densely."""
    D, W = (delta.dense() - smaller.dense()).double(), delta.dense().double()
    return float(((D @ C @ D.T).trace() / (W @ C @ W.T).trace()).sqrt())


def test_of_the_weights() -> None:
    delta, _ = problem()
    smaller, error = truncated(delta, 2)
    U, S, Vh = torch.linalg.svd(delta.dense())
    torch.testing.assert_close(smaller.dense(), U[:, :2] * S[:2] @ Vh[:2], rtol=1e-4, atol=1e-5)
    assert error.outputs is None
    assert abs(error.weights - float(S[2:].norm() / S.norm())) < 1e-6


def test_of_the_outputs_it_is_better_there_and_says_both_errors() -> None:
    delta, C = problem()
    smaller, error = truncated(delta, 2, C)
    assert smaller.rank == 2 and smaller.B.dtype == torch.float32
    assert error.outputs is not None and abs(error.outputs - lost(delta, smaller, C)) < 1e-3
    difference = (delta.dense() - smaller.dense()).norm() / delta.dense().norm()
    assert abs(error.weights - float(difference)) < 1e-5
    plain, plain_error = truncated(delta, 2)
    assert lost(delta, smaller, C) < lost(delta, plain, C)
    assert error.weights > plain_error.weights


def test_nothing_is_lost_at_full_rank_or_of_nothing() -> None:
    delta, C = problem()
    for moment in (None, C):
        whole, error = truncated(delta, 9, moment)
        torch.testing.assert_close(whole.dense(), delta.dense(), rtol=1e-3, atol=1e-4)
        assert error.weights < 1e-5
        nothing = LowRankDelta(torch.zeros(12, 1), torch.zeros(1, 20))
        assert truncated(nothing, 1, moment)[1].weights == 0
