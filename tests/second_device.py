"""A second device for machines that have one: tensors there refuse to meet those elsewhere, as on accelerators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedModel


THERE = torch.device("cpu", 1)
DEVICE = Tensor.device.__get__  # type: ignore[attr-defined]
GRAD = Tensor.grad.__get__  # type: ignore[attr-defined]


class There(Tensor):
    """A tensor on the second device; what is computed of it is there too."""


def there(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(There)


def back(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor)


def _beside(gradient: Tensor | None, leaf: Tensor) -> Tensor | None:
    """A gradient where its leaf is, wherever autograd has put it."""
    move = there if isinstance(leaf, There) else back
    return None if gradient is None else move(gradient)


class TwoDevices(TorchFunctionMode):
    """While it is entered, tensors move between two devices and tell where they are.

    Args:
        model: the parameters of these modules are on the second one.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self._weights = {id(weight) for module in modules for weight in module.parameters()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func == DEVICE:
            moved = isinstance(args[0], There) or id(args[0]) in self._weights
            return THERE if moved else func(*args)
        if func is Tensor.to:
            return self._moved(*args, **given)
        if func is Tensor.cpu:
            return back(args[0])
        if given.get("device") == THERE:
            made = func(*args, **{**given, "device": "cpu"})
            return there(made.detach()).requires_grad_(made.requires_grad)
        if func is Tensor.backward:
            return func(*args, **given)
        if func == GRAD:
            return _beside(func(*args), args[0])
        if func is torch.autograd.grad:
            leaves = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
            return tuple(map(_beside, func(*args, **given), leaves))
        met = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, Tensor) and leaf.ndim]
        if len({isinstance(tensor, There) for tensor in met}) > 1:
            raise RuntimeError(f"{func.__name__}: Expected all tensors to be on the same device, found two.")
        return func(*args, **given)

    def _moved(self, tensor: Tensor, *wanted: Any, **given: Any) -> Tensor:
        wanted = (*wanted, *given.values())
        with self:
            places = [one.device if isinstance(one, Tensor) else one for one in wanted]
        dtypes = [one.dtype if isinstance(one, Tensor) else one for one in wanted]
        for dtype in [one for one in dtypes if isinstance(one, torch.dtype)]:
            tensor = tensor.to(dtype)
        for place in [torch.device(one) for one in places if isinstance(one, (str, torch.device))]:
            tensor = there(tensor) if place == THERE else back(tensor)
        return tensor


@contextmanager
def on_two_devices(model: PreTrainedModel, first: int) -> Iterator[None]:
    """The blocks of a Llama from `first` on compute on a second device, as `device_map` places them."""
    layers = model.get_submodule("model.layers")[first:]  # type: ignore[index]
    for layer in layers:
        _calls(layer, back, there)
        _calls(layer.mlp, back, back)
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: tree_map(there, args))
        _calls(layer.mlp.down_proj, back, there)
    _calls(model.get_submodule("model.norm"), back, back)
    with TwoDevices(list(layers)):
        yield


def _calls(module: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
    own = module.forward

    def placed(move: Callable[[Tensor], Tensor], values: Any) -> Any:
        return tree_map(lambda one: move(one) if isinstance(one, Tensor) else one, values)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return placed(after, own(*placed(before, args), **placed(before, kwargs)))

    module.forward = forward  # type: ignore[method-assign]
