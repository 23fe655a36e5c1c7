"""Updates that touch only a few inputs of a linear map: which ones, and the best update on them.

With keys K (d_in, n), residuals R (d_out, n), preserved keys K_p and a penalty G, an update on the support S costs

    f(S) = min |dW_S K_S - R|^2 + |dW_S K_pS|^2 + tr(dW_S G_SS dW_S^T) = |R|^2 - tr(N_S^T M_SS^-1 N_S),

M = G + K K^T + K_p K_p^T and N = K R^T. Inputs are chosen one after the other, always the one that lowers f the most:
the gain of input c beside those chosen is |n_c|^2 / m_cc in the Schur complements of M and N. So an input counts by
the energy of the edits' keys in it, by what of the residuals it can still explain, and by how much of everything else
moves with it. Cutting a dense update to its largest entries looks at none of these, and loses the edit.

Where an update is trained there are no residuals yet. Then inputs are chosen for what of the keys they reach at a
given cost to everything else, tr(K_S^T C_SS^-1 K_S), and the update is trained in the whitened coordinates of these.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_edit.errors import ComputationError
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.ridge import Columns, Penalty, QuadraticPenalty


def most_columns(shape: tuple[int, int]) -> int:
    """How many columns of a (d_out, d_in) matrix a sparse change may touch: as many as a factor has, and not all."""
    return max(1, min(shape[0], shape[1] - 1))


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
    chosen = _greedy(penalty.matrix() + gram, cross.T, count)
    if not len(chosen):
        raise ComputationError("No input of the map explains any of the update.", "Check that the pack does anything.")
    return chosen


def support_of_keys(keys: Tensor, C: Tensor, count: int, fixed: Tensor | None = None) -> Tensor:
    """The inputs, ascending, through which an update reaches the most of the keys at the least cost to C.

    Greedy on tr(K_S^T C_SS^-1 K_S), the energy of the whitened keys that an update of the inputs S can see: what
    `key_basis` takes the leading directions of, where all inputs may be used.

    Args:
        keys: K, (d_in, n), or any K' with K' K'^T = K K^T.
        C: (d_in, d_in), positive definite: the second moment of what must not change.
        count: most inputs.
        fixed: (p,) int64, inputs that are among them whatever they reach.

    Returns:
        (m,) int64, m <= count, unless `fixed` are more.

    Raises:
        ComputationError: the keys are zero or not finite.
    """
    chosen = _greedy(C, keys, count, [] if fixed is None else fixed.tolist())
    if not len(chosen):
        raise ComputationError(
            "The keys of the edits are zero at every input of the map, or not finite.", "Edit other layers."
        )
    return chosen


def whitened_on(C: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of the updates of the inputs `support` (m,) in which their cost to C is their size.

    Returns:
        A (m, d_in), zero elsewhere, with A C A^T = I, and L (m, m) with dW_S = B A_S and B = dW_S L.

    Raises:
        ComputationError: C is not positive definite there.
    """
    L, failed = torch.linalg.cholesky_ex(C[support][:, support])
    if failed or not torch.isfinite(L).all():
        raise ComputationError(f"The second moment is singular on {len(support)} inputs.", "Raise the ridge.")
    A = C.new_zeros(len(support), C.shape[0])
    A[:, support] = torch.linalg.solve_triangular(
        L, torch.eye(len(support), dtype=C.dtype, device=C.device), upper=False
    )
    return A, L


def _greedy(M: Tensor, N: Tensor, count: int, first: Sequence[int] = ()) -> Tensor:
    """Up to `count` inputs, ascending, each the one with the largest |n_c|^2 / m_cc beside those before it.

    Args:
        M: (d_in, d_in), positive definite.
        N: (d_in, n).
        first: inputs that are taken before any other.
    """
    N = _without_idle_directions(N)
    left = M.diagonal().clone()  # diagonal of the Schur complement
    floor = torch.finfo(M.dtype).eps * M.shape[0] * left
    factor = M.new_zeros(M.shape[0], min(max(count, len(first)), M.shape[0]))
    chosen: list[int] = []
    while len(chosen) < factor.shape[1]:
        k = len(chosen)
        gains = torch.where(left > floor, N.square().sum(1) / left, torch.zeros_like(left))
        gains[chosen] = 0
        pivot = first[k] if k < len(first) else int(gains.argmax())
        if k >= len(first) and not gains[pivot] > 0:
            break
        column = (M[:, pivot] - factor[:, :k] @ factor[pivot, :k]) / left[pivot].sqrt()
        N.addr_(column, N[pivot].clone(), alpha=-1 / float(column[pivot]))
        left = (left - column.square()).clamp_min(0)
        factor[:, k] = column
        chosen.append(pivot)
    return torch.tensor(sorted(chosen), dtype=torch.long, device=M.device)


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


def solve_within(columns: Columns, penalty: QuadraticPenalty, count: int | None) -> LowRankDelta:
    """The ridge update of at most `count` inputs, chosen for it; of all where that is None. Errors as for both."""
    if count is None:
        return columns.solve(penalty)
    return solve_on_support(columns, penalty, choose_support(columns, penalty, count))


def on_columns(values: Tensor, indices: Tensor, d_in: int) -> LowRankDelta:
    """dW[:, indices] = values, and zero elsewhere, as values (d_out, m) times a selection (m, d_in)."""
    A = values.new_zeros(len(indices), d_in)
    A[torch.arange(len(indices), device=A.device), indices.long()] = 1
    return LowRankDelta(values, A)


def as_columns(delta: LowRankDelta) -> LowRankDelta:
    """The same change as values times a selection of inputs, each once and ascending; exact as `touched_columns`."""
    indices, values = touched_columns(delta)
    return on_columns(values, indices, delta.shape[1])


def touched_columns(delta: LowRankDelta) -> tuple[Tensor, Tensor]:
    """The inputs that an update reads, ascending, (m,) int64, and its columns there, (d_out, m); at least one.

    Exact, bit for bit, where every row of A has one entry, a power of two, and no two share an input.
    """
    indices = delta.A.abs().amax(0).nonzero()[:, 0]
    if not len(indices):
        indices = indices.new_zeros(1)
    return indices, (delta.B.double() @ delta.A[:, indices].double()).to(delta.B.dtype)
