"""The hypernetwork: normalised keys and output gradients to pseudo keys and pseudo gradients (MALMEN, EMSEdit).

One for all linears of one shape, conditioned on the linear by a scale and a shift. It is the identity when it is new.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Block(nn.Module):
    """z + scale[m] * max(0, z A B + c) + shift[m]

    The clamp lets the gradient pass at exactly 0, where every unit of a new block is; A is not scaled, so that a small
    step of B changes what the block computes.
    """

    def __init__(self, width: int, rank: int, modules: int, generator: torch.Generator) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(width, rank, generator=generator))
        self.B = nn.Parameter(torch.zeros(rank, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(modules, width))
        self.shift = nn.Parameter(torch.zeros(modules, width))

    def forward(self, z: Tensor, module: int) -> Tensor:
        h = (z @ self.A @ self.B + self.bias).clamp(min=0)
        return z + self.scale[module] * h + self.shift[module]


class HyperNetwork(nn.Module):
    """Low-rank residual blocks over rows [key | gradient], with a step size and a ridge for each linear.

    Args:
        d_in, d_out: shape of the linears that it serves.
        modules: how many they are.
        rank, blocks: size of the network.
        step_size: eta of every linear to begin with; it is kept as a logarithm, so that it stays positive.
        generator: of the random first factors.
    """

    def __init__(
        self, d_in: int, d_out: int, modules: int, rank: int, blocks: int, step_size: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.d_in = d_in
        self.blocks = nn.ModuleList(_Block(d_in + d_out, rank, modules, generator) for _ in range(blocks))
        self.log_step = nn.Parameter(torch.full((modules,), step_size).log())
        self.log_ridge = nn.Parameter(torch.zeros(modules))

    def forward(self, rows: Tensor, module: int) -> tuple[Tensor, Tensor]:
        """Pseudo keys (n, d_in) and pseudo gradients (n, d_out) of normalised rows (n, d_in + d_out)."""
        z = rows
        for block in self.blocks:
            z = block(z, module)
        return z[:, : self.d_in], z[:, self.d_in :]
