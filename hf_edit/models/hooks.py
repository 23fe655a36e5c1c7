"""Hooks on a model's modules, each a context: what they read, add or replace, and that they go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hf_edit.models.stream import Layout
from hf_edit.solvers.low_rank import LowRankDelta


_depth = 0
"""How many times over hooks are set aside; those put in place at another depth do nothing."""


@contextmanager
def set_aside() -> Iterator[None]:
    """The model as if no hook of these were in place; those that are put there inside work."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def here(function: Callable[..., Any], otherwise: Callable[..., Any] = lambda *_, **__: None) -> Callable[..., Any]:
    """A hook that does nothing while it is set aside, or gives way to another function."""
    depth = _depth

    def called(*args: Any, **kwargs: Any) -> Any:
        return (function if _depth == depth else otherwise)(*args, **kwargs)

    return called


def tensor_of(output: Any) -> Tensor:
    """The tensor of what a module returns, bare or first in a tuple or list."""
    return output[0] if isinstance(output, (tuple, list)) else output


def with_first(output: Any, value: Tensor) -> Any:
    """The same output with another tensor."""
    return (value, *output[1:]) if isinstance(output, (tuple, list)) else value


def _shaped(tensor: Tensor, batch: tuple[int, ...], layout: Layout | None) -> Tensor:
    """(B, T, width), also where a model flattens batch and time for its linears."""
    tensor = tensor.detach()
    return tensor.reshape(*batch, tensor.shape[-1]) if layout is None else layout.side_by_side(tensor)


@contextmanager
def hook(handle: Any) -> Iterator[None]:
    """A hook that is gone when the context ends, however it ends."""
    try:
        yield
    finally:
        handle.remove()


def reading_input(
    module: nn.Module, into: dict[Any, Tensor], key: Any, batch: tuple[int, ...], layout: Layout | None = None
) -> Any:
    """Keep what enters a linear, or a block whose residual stream has that layout."""

    def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        into[key] = _shaped(args[0] if args else kwargs["hidden_states"], batch, layout)

    return hook(module.register_forward_pre_hook(here(read), with_kwargs=True))


def reading_output(
    module: nn.Module, into: dict[Any, Tensor], key: Any, batch: tuple[int, ...], layout: Layout | None = None
) -> Any:
    """Keep what leaves a linear, or a block whose residual stream has that layout."""

    def read(_: nn.Module, __: Any, output: Any) -> None:
        into[key] = _shaped(tensor_of(output), batch, layout).clone()  # some models add to it in place

    return hook(module.register_forward_hook(here(read)))


def adding(module: nn.Module, shift: Tensor) -> Any:
    """Add to what leaves a module."""

    def add(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output + shift.reshape(output.shape).to(output)  # blocks may lie on several devices

    return hook(module.register_forward_hook(here(add)))


def side_path(module: nn.Module, delta: LowRankDelta | Tensor) -> Any:
    """A linear computes as if the change, (d_out, d_in), were in its weight."""
    factors = (delta,) if isinstance(delta, Tensor) else (delta.A, delta.B)

    def add(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        change = args[0].to(factors[0].dtype)
        for factor in factors:
            change = change @ factor.to(change.device).T
        return (output + change).to(output.dtype)  # rounded once, as PEFT does

    return hook(module.register_forward_hook(here(add)))


def replacing(module: nn.Module, value: Tensor, where: Tensor) -> Any:
    """Put values where `where` (B, T) says, in what leaves a module."""

    def replace(_: nn.Module, __: Any, output: Any) -> Any:
        own = tensor_of(output)
        values = value.expand(*where.shape, value.shape[-1]).reshape(own.shape)
        chosen = where[..., None].expand(*where.shape, value.shape[-1]).reshape(own.shape)
        return with_first(output, torch.where(chosen.to(own.device), values.to(own), own))

    return hook(module.register_forward_hook(here(replace)))


def entering(block: nn.Module, states: Tensor) -> Any:
    """Give a block other states, (B, T, d), than those that reach it."""

    def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (states, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": states}

    return hook(block.register_forward_pre_hook(here(replace), with_kwargs=True))


def passed_through(block: nn.Module, arity: int | None) -> Any:
    """The block returns its input, in the form in which it returns its output."""

    def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return hidden_states if arity is None else (hidden_states, *([None] * (arity - 1)))

    return calling(block, forward)


def recomputed(block: nn.Module) -> Any:
    """The block keeps its inputs alone for a backward pass, and then runs again.

    Whatever stands on the modules inside of it, such as an update, must still be there when that happens.
    """
    return calling(block, partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False))


@contextmanager
def calling(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """The module computes by another function."""
    had_own = "forward" in module.__dict__  # accelerate, for one, replaces forward on the instance
    own: Callable[..., Any] | None = module.__dict__.get("forward")
    module.forward = here(forward, module.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        if had_own:
            module.forward = own  # type: ignore[assignment]
        else:
            del module.forward
