"""Output maps of experts that are fused into one parameter: finding them, what enters them, and running them changed.

Nothing here knows how a family computes its mixture. The module around the parameter is run again with other values
in the parameter's place, which says all there is to know of a map that is linear in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from hf_edit.errors import UnsupportedModelError
from hf_edit.models.forward import run
from hf_edit.models.hooks import calling, here, hook
from hf_edit.models.orientation import EXPERTS, as_stored, fused_orientation, matrix_shape
from hf_edit.models.shapes import base_of
from hf_edit.solvers.low_rank import LowRankDelta


TOLERANCE = 0.05
"""Relative; far above rounding in bf16, far below what a map that is not linear is off."""


@dataclass(frozen=True, eq=False)
class Experts:
    """The output maps of a block's experts.

    Args:
        holder: the module with the parameter (E, ., .).
        parameter: its name there.
        carrier: the innermost module around it whose output has one row for each token.
    """

    holder: nn.Module
    parameter: str
    carrier: nn.Module

    @property
    def orientation(self) -> str:
        return fused_orientation(self.holder)

    @property
    def weight(self) -> Tensor:
        weight = self.holder._parameters[self.parameter]
        assert weight is not None
        return weight

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in), of all experts side by side."""
        return matrix_shape(self.weight.shape, self.orientation)

    def reading_input(self, into: dict[Any, Tensor], key: Any, batch: tuple[int, ...]) -> Any:
        """A context that keeps what enters the map, (B, T, d_in)."""

        def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], __: Any) -> None:
            into[key] = self.inputs(args, kwargs).reshape(*batch, -1)

        return hook(self.carrier.register_forward_hook(here(read), with_kwargs=True))

    @contextmanager
    def side_path(self, delta: LowRankDelta | Tensor) -> Iterator[None]:
        """The experts compute as if the change, (d_out, d_in), were in their parameter, also rounded as there."""
        own = self.carrier.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            dense = delta if isinstance(delta, Tensor) else delta.dense()
            weight = self.weight
            change = as_stored(dense, self.orientation, weight.shape)
            dtype = torch.promote_types(change.dtype, weight.dtype)
            with self._holding((weight.to(dtype) + change.to(dtype)).to(weight.dtype)):
                return own(*args, **kwargs)

        with calling(self.carrier, forward):
            yield

    @torch.no_grad()
    def inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """What enters the map, (tokens, d_in), for these arguments of the carrier.

        Experts that hand an input on to an output, in place of theirs, say what that input was: d_out of them in one
        run. A token's experts of many, so most inputs are zero.
        """
        d_out, d_in = self.shape
        chosen = torch.zeros_like(self.weight)
        width = d_in // chosen.shape[0]
        nothing = self._output(chosen, args, kwargs)  # biases
        parts = []
        for begin in range(0, d_in, d_out):
            of = torch.arange(begin, min(begin + d_out, d_in), device=chosen.device)
            to = of - begin
            at = (of // width, to, of % width) if self.orientation == EXPERTS else (of // width, of % width, to)
            chosen[at] = 1
            parts.append((self._output(chosen, args, kwargs) - nothing)[:, : len(of)])
            chosen[at] = 0
        return torch.cat(parts, dim=1)

    def is_output_map(self, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: int) -> bool:
        """Whether the carrier's output, one row for each token, is linear in the parameter, coordinate by coordinate.

        That sets output maps apart from those before an activation, whatever their shapes.
        """
        weight, d_out = self.weight.detach(), self.shape[0]
        plain = type(self.carrier).forward(self.carrier, *args, **kwargs)
        if not isinstance(plain, Tensor) or plain.shape[-1] != d_out or plain.numel() != tokens * d_out:
            return False
        nothing, twice = (self._output(scale * weight, args, kwargs) for scale in (0, 2))
        effect = plain.reshape(-1, d_out) - nothing
        if not effect.any() or (twice - nothing - 2 * effect).norm() > TOLERANCE * effect.norm():
            return False
        lacking = weight.clone()
        (lacking[:, 0] if self.orientation == EXPERTS else lacking[:, :, 0]).zero_()
        left = self._output(lacking, args, kwargs) - nothing
        wanted = torch.cat([torch.zeros_like(effect[:, :1]), effect[:, 1:]], dim=1)
        return bool((left - wanted).norm() <= TOLERANCE * effect[:, 0].norm())

    def _output(self, weight: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """What the carrier gives with another parameter, (tokens, d_out); past hooks and side paths."""
        with self._holding(weight):
            output: Tensor = type(self.carrier).forward(self.carrier, *args, **kwargs)
        return output.reshape(-1, self.shape[0])

    @contextmanager
    def _holding(self, value: Tensor) -> Iterator[None]:
        held: dict[str, Any] = self.holder._parameters
        own = held[self.parameter]
        held[self.parameter] = value
        try:
            yield
        finally:
            held[self.parameter] = own


def experts_at(block: nn.Module, path: str, carrier: str) -> Experts:
    """The experts whose parameter is at that path in a block.

    Raises:
        UnsupportedModelError: they carry an adapter, which hides their parameter.
    """
    holder_path, _, parameter = path.rpartition(".")
    holder = block.get_submodule(holder_path)
    if isinstance(holder, BaseTunerLayer):
        raise UnsupportedModelError(
            f"The experts {holder_path} carry an adapter, so their parameter cannot be edited beside it.",
            "Detach it first, or merge it.",
        )
    return Experts(holder, parameter, block.get_submodule(carrier))


@torch.no_grad()
def find_experts(model: nn.Module, blocks: Mapping[int, nn.Module], ids: Tensor, width: int) -> dict[str, str]:
    """Paths inside a block of the parameters that are output maps of fused experts -> path of their carrier.

    Args:
        blocks: by index; of blocks that are built alike the first is tried.
        ids: (B, T), a text to try them on.
        width: of the residual stream.
    """
    found: dict[str, str] = {}
    for block in blocks.values():
        candidates = [path for path in _parameters_of_experts(block, width) if path not in found]
        if not candidates:
            continue
        calls = _calls(model, block, {outer for path in candidates for outer in _around(path)}, ids)
        for path in candidates:
            for outer in _around(path):
                experts = experts_at(block, path, outer)
                if outer in calls and experts.is_output_map(*calls[outer], ids.numel()):
                    found[path] = outer
                    break
    return found


def _parameters_of_experts(block: nn.Module, width: int) -> list[str]:
    """Paths of the parameters (E, ., .) with E of 2 or more, one of whose maps gives as many outputs as the stream."""
    return [
        f"{path}.{name}"
        for path, module in block.named_modules()
        if path and ".base_layer" not in path  # what an adapter layer wraps goes by the layer's own path
        for name, parameter in base_of(module).named_parameters(recurse=False)
        if parameter.ndim == 3
        and parameter.shape[0] > 1
        and matrix_shape(parameter.shape, fused_orientation(base_of(module)))[0] == width
    ]


def _around(path: str) -> Iterator[str]:
    """The modules around a parameter, from the inside out."""
    while path := path.rpartition(".")[0]:
        yield path


def _calls(
    model: nn.Module, block: nn.Module, paths: set[str], ids: Tensor
) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """With which arguments the modules of a block are called as a text runs; those that are."""
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note(path: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[path] = args, kwargs

    with ExitStack() as stack:
        for path in paths:
            module = block.get_submodule(path)
            stack.enter_context(hook(module.register_forward_pre_hook(partial(note, path), with_kwargs=True)))
        run(model, ids)
    return calls
