"""How weights that an edit may change are stored, and how each is one matrix (d_out, d_in).

Experts that are fused into one parameter are one linear map too: its inputs are those of all experts side by side,
each times its share in the token's mixture, and zero for the experts that the token is not sent to. What a mixture
gives is then W x with W = [W_1 ... W_E], and a change of low rank is one change with columns for every expert.
"""

from __future__ import annotations

from torch import Size, Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_edit.models.fingerprint import base_modules


LINEAR, CONV1D, EXPERTS, EXPERTS_TRANSPOSED = "linear", "conv1d", "experts", "experts-transposed"
ORIENTATIONS = (LINEAR, CONV1D, EXPERTS, EXPERTS_TRANSPOSED)
"""`linear` (d_out, d_in), `conv1d` (d_in, d_out); of E fused experts of f inputs, d_in = E * f: `experts`
(E, d_out, f), `experts-transposed` (E, f, d_out)."""


def is_fused(orientation: str) -> bool:
    """Whether this is a parameter of several experts."""
    return orientation in (EXPERTS, EXPERTS_TRANSPOSED)


def weight_name(name: str, orientation: str) -> str:
    """Full name of the parameter of a map: maps of fused experts go by the parameter's own."""
    return name if is_fused(orientation) else f"{name}.weight"


def matrix_shape(shape: Size | tuple[int, ...], orientation: str) -> tuple[int, int]:
    """(d_out, d_in) of a stored weight."""
    if not is_fused(orientation):
        first, second = shape
        return (first, second) if orientation == LINEAR else (second, first)
    experts, first, second = shape
    d_out, width = (first, second) if orientation == EXPERTS else (second, first)
    return d_out, experts * width


def as_matrix(weight: Tensor, orientation: str) -> Tensor:
    """A stored weight as (d_out, d_in); a view, but for fused experts."""
    if is_fused(orientation):
        by_output = weight.permute(1, 0, 2) if orientation == EXPERTS else weight.permute(2, 0, 1)
        return by_output.flatten(1)
    return weight if orientation == LINEAR else weight.T


def as_stored(matrix: Tensor, orientation: str, shape: Size | tuple[int, ...]) -> Tensor:
    """Undo `as_matrix` for a weight stored in this shape; contiguous."""
    if is_fused(orientation):
        by_output = matrix.unflatten(1, (shape[0], -1))  # (d_out, E, f)
        return by_output.permute((1, 0, 2) if orientation == EXPERTS else (1, 2, 0)).contiguous()
    return matrix.contiguous() if orientation == LINEAR else matrix.T.contiguous()


def fused_orientation(holder: nn.Module) -> str:
    """How a module stores the parameters of its experts, by the mark that transformers and PEFT go by."""
    return EXPERTS_TRANSPOSED if getattr(holder, "is_transposed", False) else EXPERTS


def stored_weights(base: nn.Module) -> dict[str, tuple[Tensor, str]]:
    """Name of every map of a model, without wrappers -> its weight and orientation.

    Linear maps go by the module's name, parameters of three axes by their own.
    """
    found: dict[str, tuple[Tensor, str]] = {}
    for name, module in base_modules(base):
        if isinstance(module, (nn.Linear, Conv1D)):
            found[name] = module.weight, CONV1D if isinstance(module, Conv1D) else LINEAR
        else:
            for own, parameter in module.named_parameters(prefix=name, recurse=False):
                if parameter.ndim == 3:
                    found[own] = parameter, fused_orientation(module)
    return found
