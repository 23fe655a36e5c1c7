"""Second moments for tests."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from hf_edit.models.editable import EditableModel
from hf_edit.statistics.moments import PARTS, SecondMoments


def random_moments(view: EditableModel, parts: Iterable[str] = PARTS) -> SecondMoments:
    """Of every linear of the model, from random keys."""
    generator = torch.Generator().manual_seed(1)
    linears = {linear.name: linear for layer in range(view.n_layers) for linear in view.block_linears(layer)}
    matrices = {}
    for part in parts:
        matrices[part] = {}
        for name, linear in linears.items():
            Z = torch.randn(3 * linear.d_in, linear.d_in, generator=generator, dtype=torch.float64)
            matrices[part][name] = Z.T @ Z / len(Z)
    return SecondMoments(matrices, dict.fromkeys(matrices, 100), "random")
