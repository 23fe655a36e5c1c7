"""The same modules in the other blocks: what a pack must fill with zeros where a runtime wants every block covered."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_edit.errors import BaseMismatchError
from hf_edit.models.fingerprint import base_modules
from hf_edit.models.shapes import linear_shape


def siblings(model: nn.Module, modules: Iterable[str]) -> dict[str, tuple[int, int]]:
    """The linear maps of a model that bear the same names as `modules` in other blocks, with their (d_out, d_in).

    Of a name, the first part that is a number is its block. Blocks of another kind, which have no such map, are left
    out.

    Args:
        model: the base; its weights are not looked at and may be on the meta device.
        modules: full names.

    Raises:
        BaseMismatchError: the model lacks one of the modules themselves.
    """
    linears = {
        name: linear_shape(module) for name, module in base_modules(model) if isinstance(module, (nn.Linear, Conv1D))
    }
    own = set(modules)
    missing = sorted(own - set(linears))
    if missing:
        raise BaseMismatchError(
            f"The model has no linear map {missing[0]}.", "Give the base that the pack was made for."
        )
    kinds = {_kind(name) for name in own}
    return {name: shape for name, shape in linears.items() if name not in own and _kind(name) in kinds}


def _kind(name: str) -> str:
    """`model.layers.3.mlp.down_proj` -> `model.layers.*.mlp.down_proj`."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name, count=1)
