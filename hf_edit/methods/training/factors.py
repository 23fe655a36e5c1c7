"""What is trained: the factors of the updates, never a weight of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from hf_edit.models.editable import EditableLinear
from hf_edit.solvers.low_rank import LowRankDelta


class Factors(Protocol):
    """Trainable updates of some linears."""

    def parameters(self) -> Sequence[Tensor]:
        """The leaves that an optimiser steps."""

    def deltas(self) -> dict[str, LowRankDelta]:
        """The updates as they are now, differentiable with respect to the leaves."""

    def detached(self) -> dict[str, LowRankDelta]:
        """The updates as they are now, for good."""

    def size(self) -> Tensor:
        """What the updates cost: the sum over linears of tr(dW C dW^T), C what must not change or the identity.

        In units of its own where the factors have one.
        """

    def scale(self, by: float) -> None:
        """Multiply the updates by a number, in place."""


class KeyBasisFactors:
    """dW = B A with A fixed: orthonormal directions in whitened coordinates (`hf_edit.solvers.key_basis`).

    Args:
        bases: linear name -> A, (r, d_in).
        start: linear name -> B, (d_out, r), where training begins.
        unit: what is trained is B / unit, and the size counts in it too, so that one step size and one weight serve
            models whose hidden states are of any scale.
    """

    def __init__(self, bases: Mapping[str, Tensor], start: Mapping[str, Tensor], unit: float = 1.0) -> None:
        self._A, self._unit = bases, unit
        self._B = {name: (B / unit).requires_grad_() for name, B in start.items()}

    def parameters(self) -> Sequence[Tensor]:
        return list(self._B.values())

    def deltas(self) -> dict[str, LowRankDelta]:
        return {name: LowRankDelta(self._unit * B, self._A[name]) for name, B in self._B.items()}

    def detached(self) -> dict[str, LowRankDelta]:
        return _detached(self.deltas())

    def size(self) -> Tensor:
        return sum((B.square().sum() for B in self._B.values()), start=torch.zeros(()))

    @torch.no_grad()
    def scale(self, by: float) -> None:
        for B in self._B.values():
            B.mul_(by)


class LoraFactors:
    """dW = B A, both trained, as in LoRA (arXiv 2106.09685): A uniform as PEFT draws it, B zero.

    Args:
        linears: to change.
        rank: r, at most the size of the smaller side.
        dtype: of the factors.
        generator: of A.
        device: of the factors; the model's, as losses are there.
    """

    def __init__(
        self,
        linears: Sequence[EditableLinear],
        rank: int,
        dtype: torch.dtype,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        for linear in linears:
            r = min(rank, linear.d_in, linear.d_out)
            A = (2 * torch.rand(r, linear.d_in, generator=generator, dtype=dtype) - 1) / linear.d_in**0.5
            B = torch.zeros(linear.d_out, r, dtype=dtype)
            self._factors[linear.name] = B.to(device).requires_grad_(), A.to(device).requires_grad_()

    def parameters(self) -> Sequence[Tensor]:
        return [tensor for pair in self._factors.values() for tensor in pair]

    def deltas(self) -> dict[str, LowRankDelta]:
        return {name: LowRankDelta(B, A) for name, (B, A) in self._factors.items()}

    def detached(self) -> dict[str, LowRankDelta]:
        return _detached(self.deltas())

    def size(self) -> Tensor:
        return torch.stack([((B.T @ B) * (A @ A.T)).sum() for B, A in self._factors.values()]).sum()

    @torch.no_grad()
    def scale(self, by: float) -> None:
        for B, _ in self._factors.values():
            B.mul_(by)


def _detached(deltas: Mapping[str, LowRankDelta]) -> dict[str, LowRankDelta]:
    return {name: LowRankDelta(delta.B.detach().clone(), delta.A.detach().clone()) for name, delta in deltas.items()}
