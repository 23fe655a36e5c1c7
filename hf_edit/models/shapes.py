"""The linear maps of a model, and their sizes."""

from __future__ import annotations

from collections.abc import Iterator

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_edit.errors import UnsupportedModelError


def linears_of(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every linear map of a block with its path, in the order of its modules; with adapters around it where there are.

    What an adapter layer holds is the adapter's, not the base's.
    """
    wrapped: list[str] = []
    for path, module in block.named_modules():
        if path.startswith(tuple(f"{outer}." for outer in wrapped)):
            continue
        if isinstance(module, BaseTunerLayer):
            wrapped.append(path)
        if isinstance(base_of(module), (nn.Linear, Conv1D)):
            yield path, module


def base_of(module: nn.Module) -> nn.Module:
    """What an adapter layer wraps; any other module itself."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a linear map, whichever way it stores its weight.

    Raises:
        UnsupportedModelError: it is of another kind, such as a quantiser's own.
    """
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    raise UnsupportedModelError(
        f"{type(module).__name__} is neither nn.Linear nor Conv1D, so hf_edit cannot change it.",
        "Load the model unquantised, in float32, bfloat16 or float16.",
    )
