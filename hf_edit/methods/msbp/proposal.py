"""From captured rows to a proposed update: standardise, transform, desired changes, one solve (EMSEdit, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_edit.methods.msbp.capture import Captured
from hf_edit.methods.msbp.network import HyperNetwork
from hf_edit.models.editable import EditableLinear
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.running import RunningMoments
from hf_edit.solvers.shift import KeySolve


Shape = tuple[int, int]
"""(d_out, d_in)"""


@dataclass(frozen=True)
class Rule:
    """What sets the methods apart; k^ is the normalised key, k~ the pseudo key.

    Args:
        solve: aggregate by ridge least squares; else sum the rows' rank-one updates (MEND).
        centred: rows are standardised as published, (x - mean) / std; else only scaled, x / rms, which keeps every
            coefficient <k, k^> positive, and works for a single row.
        raw_keys: a row's coefficient is <k, k~>, with the raw key; else <k^, k~> (UltraEdit).
    """

    solve: bool = True
    centred: bool = False
    raw_keys: bool = True


@dataclass(frozen=True)
class Place:
    """Where a linear stands among those of its shape, which share normaliser and network."""

    shape: Shape
    module: int


def places(linears: Sequence[EditableLinear]) -> dict[str, Place]:
    """Linear name -> its place."""
    found: dict[str, Place] = {}
    counts: dict[Shape, int] = {}
    for linear in linears:
        shape = (linear.d_out, linear.d_in)
        counts[shape] = counts.get(shape, -1) + 1
        found[linear.name] = Place(shape, counts[shape])
    return found


class Normaliser:
    """Running statistics of rows [key | gradient], one for each shape of linear."""

    def __init__(self, moments: dict[Shape, RunningMoments]) -> None:
        self.moments = moments

    @classmethod
    def empty(cls, linears: Sequence[EditableLinear], device: torch.device | str = "cpu") -> Normaliser:
        """Nothing seen yet."""
        shapes = {(linear.d_out, linear.d_in) for linear in linears}
        return cls({shape: RunningMoments.empty(sum(shape), device) for shape in sorted(shapes)})

    def add(self, captured: Captured, where: Mapping[str, Place]) -> None:
        """Take in the rows of every linear, before any is normalised."""
        for name, place in where.items():
            self.moments[place.shape].add(torch.cat([captured.keys[name], captured.gradients[name]], dim=1))

    def rows(self, captured: Captured, name: str, place: Place, *, centred: bool) -> Tensor:
        """The normalised rows of one linear, (n, d_in + d_out)."""
        rows = torch.cat([captured.keys[name], captured.gradients[name]], dim=1)
        moments = self.moments[place.shape]
        return moments.standardised(rows) if centred else moments.scaled(rows)


def desired(
    rule: Rule, keys: Tensor, rows: Tensor, network: HyperNetwork | None, module: int
) -> tuple[Tensor, Tensor]:
    """Desired changes D (n, d_out) of one linear and pseudo keys (n, d_in), differentiable in the network.

    D = -eta c v~ with c as the rule has it, and without c where rank-one updates are summed.

    Args:
        keys: K, (n, d_in).
        rows: normalised [key | gradient], (n, d_in + d_out).
        network: none: the identity, with eta 1.
    """
    d_in = keys.shape[1]
    pseudo_keys, pseudo_gradients = (rows[:, :d_in], rows[:, d_in:]) if network is None else network(rows, module)
    changes = -pseudo_gradients if network is None else -network.log_step[module].exp() * pseudo_gradients
    if rule.solve:
        against = keys if rule.raw_keys else rows[:, :d_in]
        changes = (against * pseudo_keys).sum(dim=1, keepdim=True) * changes
    return changes, pseudo_keys


@dataclass(frozen=True, eq=False)
class Proposal:
    """An update of one linear, linear in the step size.

    Args:
        changes: D at step size 1, (n, d_out): the desired changes of the outputs; dW = `delta(changes)`.
        solve: none for the sum of rank-one updates.
        pseudo_keys: of the rows, for that sum.
    """

    changes: Tensor
    solve: KeySolve | None
    pseudo_keys: Tensor | None

    def delta(self, changes: Tensor) -> LowRankDelta:
        """dW for desired changes (n, d_out)."""
        if self.solve is not None:
            return self.solve.delta(changes)
        assert self.pseudo_keys is not None
        return LowRankDelta(changes.T, self.pseudo_keys)
