"""Updates that touch only a few inputs of a linear map: which ones, and the best update on them.

With keys K (d_in, n), residuals R (d_out, n), preserved keys K_p and a penalty G, an update on the support S costs

    f(S) = min |dW_S K_S - R|^2 + |dW_S K_pS|^2 + tr(dW_S G_SS dW_S^T) = |R|^2 - tr(N_S^T M_SS^-1 N_S),

M = G + K K^T + K_p K_p^T and N = K R^T. Inputs are chosen one after the other, always the one that lowers f the most:
the gain of input c beside those chosen is |n_c|^2 / m_cc in the Schur complements of M and N. So an input counts by
the energy of the edits' keys in it, by what of the residuals it can still explain, and by how much of everything else
moves with it. Cutting a dense update to its largest entries looks at none of these, and loses the edit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_edit.errors import ComputationError
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.ridge import Columns, Penalty, QuadraticPenalty


def choose_support(columns: Columns, penalty: QuadraticPenalty, count: int) -> Tensor:
    """The inputs, ascending, that an update of at most `count` of them should use.

    Greedy forward selection on f, exact at each step: a pivoted Cholesky factorisation of M that takes the input of
    the largest gain as its next pivot. Costs count * d_in * (count + rank of the residuals).

    Returns:
        (m,) int64, m <= count: fewer where no other input lowers f.

    Raises:
        ComputationError: there is nothing to explain, or it is not finite.
    """
    gram, cross = columns.sums()
    M, N = penalty.matrix() + gram, _without_idle_directions(cross.T)  # (d_in, d_in), (d_in, r)
    left = M.diagonal().clone()  # diagonal of the Schur complement
    floor = torch.finfo(M.dtype).eps * M.shape[0] * left
    factor = M.new_zeros(M.shape[0], min(count, M.shape[0]))
    chosen: list[int] = []
    while len(chosen) < factor.shape[1]:
        gains = torch.where(left > floor, N.square().sum(1) / left, torch.zeros_like(left))
        gains[chosen] = 0
        pivot = int(gains.argmax())
        if not gains[pivot] > 0:
            break
        k = len(chosen)
        column = (M[:, pivot] - factor[:, :k] @ factor[pivot, :k]) / left[pivot].sqrt()
        N.addr_(column, N[pivot].clone(), alpha=-1 / float(column[pivot]))
        left = (left - column.square()).clamp_min(0)
        factor[:, k] = column
        chosen.append(pivot)
    if not chosen:
        raise ComputationError("No input of the map explains any of the update.", "Check that the pack does anything.")
    return torch.tensor(sorted(chosen))


def _without_idle_directions(N: Tensor) -> Tensor:
    """N (d_in, d_out) turned so that the lengths of its rows need few columns: residuals are often of low rank."""
    values, V = torch.linalg.eigh(N.T @ N)
    return N @ V[:, values > torch.finfo(N.dtype).eps * values[-1]]


def solve_on_support(columns: Columns, penalty: QuadraticPenalty, support: Tensor) -> LowRankDelta:
    """The ridge update that is zero outside the inputs `support` (m,), ascending: values and a selection.

    Returns:
        B = dW_S, (d_out, m), and A = the rows of the identity that S names, in float64.

    Raises:
        ComputationError: the penalty is not positive definite on these inputs.
    """
    inside, failed = torch.linalg.cholesky_ex(penalty.matrix()[support][:, support])
    if failed or not torch.isfinite(inside).all():
        raise ComputationError(f"The penalty is singular on {len(support)} inputs.", "Raise the ridge.")
    values = columns.restricted(support).solve(Penalty(inside, 1.0)).dense()
    return on_columns(values, support, columns.d_in)


def on_columns(values: Tensor, indices: Tensor, d_in: int) -> LowRankDelta:
    """dW[:, indices] = values, and zero elsewhere, as values (d_out, m) times a selection (m, d_in)."""
    A = values.new_zeros(len(indices), d_in)
    A[torch.arange(len(indices)), indices.long()] = 1
    return LowRankDelta(values, A)


def touched_columns(delta: LowRankDelta) -> tuple[Tensor, Tensor]:
    """The inputs that an update reads, ascending, (m,) int64, and its columns there, (d_out, m); at least one.

    Exact, bit for bit, where every row of A has one entry, a power of two, and no two share an input.
    """
    indices = delta.A.abs().amax(0).nonzero()[:, 0]
    if not len(indices):
        indices = indices.new_zeros(1)
    return indices, (delta.B.double() @ delta.A[:, indices].double()).to(delta.B.dtype)
