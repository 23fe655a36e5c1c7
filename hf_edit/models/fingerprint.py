"""Recognising a base model by its weights, whatever adapters are around it.

A tensor is recorded by its digests in three dtypes, because a base may be loaded in another dtype than the one it was
edited in: casting down is a function, so both sides can be compared in the coarser of the two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from math import gcd
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from hf_edit.errors import UnsupportedModelError


DIGEST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_AS_INTEGER = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
_WEIGHT_DTYPES = {*DIGEST_DTYPES.values(), torch.float64}
_CHUNK = 1 << 22  # elements cast at a time, so that a digest needs no second copy of a large weight
_SAMPLE = 4096
_GOLDEN = (5**0.5 - 1) / 2


def tensor_digests(tensor: Tensor) -> dict[str, str]:
    """dtype name -> sha256 of the tensor's row-major little-endian bytes in that dtype.

    Raises:
        UnsupportedModelError: the tensor has no values (meta device) or holds quantised codes instead of weights.
    """
    return {name: _digest(tensor, dtype) for name, dtype in DIGEST_DTYPES.items()}


def matches(recorded: Mapping[str, Any], tensor: Tensor) -> bool:
    """Whether `tensor` is the one recorded, compared in the coarser of the recorded and its present dtype.

    Args:
        recorded: `{"dtype": name, "shape": [..], "sha256": tensor_digests(...)}`.

    Raises:
        UnsupportedModelError: as `tensor_digests`.
    """
    _check_readable(tensor)  # quantised codes have shapes of their own
    if list(tensor.shape) != list(recorded["shape"]):
        return False
    name = _coarser(recorded["dtype"], dtype_name(tensor.dtype))
    return _digest(tensor, DIGEST_DTYPES[name]) == recorded["sha256"][name]


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` -> `float32`."""
    return str(dtype).removeprefix("torch.")


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module of the base with its name there: adapter wrappers, and what they hold, left out."""
    return _walk(model.get_base_model() if isinstance(model, PeftModel) else model, "")


def model_fingerprint(model: nn.Module) -> str:
    """sha256 over names, shapes, dtypes and a fixed sample of at most 4096 elements of each parameter of the base.

    Fast at any size. It depends on the dtype that the model was loaded in: use it to find what was computed on this
    very model, and `matches` to recognise a base across dtypes.

    Raises:
        UnsupportedModelError: as `tensor_digests`.
    """
    sha = hashlib.sha256()
    parameters = (
        (f"{prefix}.{name}" if prefix else name, parameter)
        for prefix, module in base_modules(model)
        for name, parameter in module.named_parameters(recurse=False)
    )
    for name, parameter in sorted(parameters, key=lambda entry: entry[0]):
        sha.update(f"{name}\0{list(parameter.shape)}\0{dtype_name(parameter.dtype)}\0".encode())
        _check_readable(parameter)
        values = parameter.detach().reshape(-1)
        stride = max(1, -(-values.numel() // _SAMPLE))
        columns = parameter.shape[-1] if parameter.ndim else 1
        if stride >= columns > _SAMPLE:  # more columns than samples: each a golden section of a row further
            stride += (round(_GOLDEN * columns) - stride) % columns
        while gcd(stride, columns) > 1:  # else it meets the same few columns in every row
            stride += 1
        sha.update(_digest(values[::stride], torch.float32).encode())
    return sha.hexdigest()


def running_fingerprint(model: nn.Module) -> str:
    """The fingerprint of what runs: the base's, and where adapters are active one over theirs as well.

    What is computed with a user's adapter in place must not be taken for something computed without it.

    Raises:
        UnsupportedModelError: as `tensor_digests`.
    """
    base = model_fingerprint(model)
    parts = [part for name, module in model.named_modules() for part in _active_parts(name, module)]
    return hashlib.sha256("\0".join([base, *parts]).encode()).hexdigest() if parts else base


def _active_parts(name: str, module: nn.Module) -> Iterator[str]:
    """Name, scale, weights and buffers of every adapter that changes what this module computes."""
    if not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) or module.disable_adapters:
        return
    for adapter in module.active_adapters:
        scale = getattr(module, "scaling", {}).get(adapter)
        for own_name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if adapter in own_name.split("."):
                as_weight = tensor.dtype in _WEIGHT_DTYPES
                digest = _digest(tensor, torch.float32) if as_weight else tensor.tolist()  # such as columns
                yield f"{name}.{own_name} {scale} {digest}"


def _walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    while isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        module = module.base_layer if isinstance(module, BaseTunerLayer) else module.original_module
    yield name, module
    for child_name, child in module.named_children():
        yield from _walk(child, f"{name}.{child_name}" if name else child_name)


def _coarser(first: str, second: str) -> str:
    """The dtype of the two (as names) with the fewer mantissa bits; float64 counts as float32."""
    for name in ("bfloat16", "float16"):
        if name in (first, second):
            return name
    return "float32"


def is_quantised(tensor: Tensor) -> bool:
    """Whether it holds codes instead of weights: integers, or a class of tensor that a library made."""
    return tensor.dtype not in _WEIGHT_DTYPES or type(tensor.detach()) is not Tensor


def _check_readable(tensor: Tensor) -> None:
    if tensor.is_meta:
        raise UnsupportedModelError(
            f"A parameter of shape {tuple(tensor.shape)} has no values (meta device).",
            "Load the model fully into memory, without offloading to disk.",
        )
    if is_quantised(tensor):
        raise UnsupportedModelError(
            f"A parameter of shape {tuple(tensor.shape)} and dtype {dtype_name(tensor.dtype)} holds quantised codes, "
            "not weights.",
            "Load the model unquantised, in float32, bfloat16 or float16.",
        )


def _digest(tensor: Tensor, dtype: torch.dtype) -> str:
    _check_readable(tensor)
    sha = hashlib.sha256()
    for chunk in tensor.detach().reshape(-1).split(_CHUNK):
        integers = chunk.to(dtype).cpu().contiguous().view(_AS_INTEGER[dtype]).numpy()
        sha.update(integers.astype(integers.dtype.newbyteorder("<"), copy=False).data)
    return sha.hexdigest()
