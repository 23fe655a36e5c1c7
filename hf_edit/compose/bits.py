"""Tensors as bits: digests, neighbouring values, and the lossless difference between two tensors of one dtype."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
import torch
from torch import Tensor

from hf_edit.errors import PackError


_INTEGERS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
DTYPES = tuple(_INTEGERS)
_LEVEL = 1  # higher levels of zlib save 3 % more and take five times as long


def digest(tensor: Tensor) -> str:
    """sha256 of the tensor's row-major little-endian bytes."""
    integers = _bits(tensor).numpy()
    return hashlib.sha256(integers.astype(integers.dtype.newbyteorder("<"), copy=False).data).hexdigest()


def neighbour(tensor: Tensor, direction: Tensor) -> Tensor:
    """The next value of the dtype up where `direction` is positive, down where it is negative, the same at zero."""
    steps = _ordered(_bits(tensor)) + direction.sign().to(_INTEGERS[tensor.dtype])
    return _ordered(steps).view(tensor.dtype)


def difference(before: Tensor, after: Tensor) -> Tensor:
    """What turns `after` back into `before`, compressed: (n,) uint8.

    Counted in steps of the dtype, small changes are small integers, whose high bytes are nearly all zero.
    """
    steps = _ordered(_bits(before)) - _ordered(_bits(after))  # wraps around, and so does its inverse
    unsigned = (steps << 1) ^ (steps >> (8 * steps.element_size() - 1))  # 0, -1, 1, -2, ... to 0, 1, 2, 3, ...
    integers = unsigned.reshape(-1).numpy()
    little = integers.astype(integers.dtype.newbyteorder("<"), copy=False)
    planes = little.view(np.uint8).reshape(-1, integers.itemsize).T  # all lowest bytes, then all second lowest, ...
    return torch.from_numpy(np.frombuffer(zlib.compress(planes.tobytes(), _LEVEL), np.uint8).copy())


def undone(code: Tensor, after: Tensor) -> Tensor:
    """Undo `difference`.

    Args:
        code: may come from anyone.

    Raises:
        PackError: it is no difference of a tensor of this size.
    """
    bits = _bits(after)
    size = bits.numel() * bits.element_size()
    reader = zlib.decompressobj()
    try:
        data = reader.decompress(code.numpy().tobytes(), size + 1)
    except zlib.error as error:
        raise PackError(f"A difference of weights cannot be decompressed: {error}.", "Get it anew.") from error
    if len(data) != size or not reader.eof or reader.unused_data:
        raise PackError(f"A difference of weights is not one of {size} bytes.", "Get it anew.")
    planes = np.frombuffer(data, np.uint8).reshape(bits.element_size(), -1)
    little = np.ascontiguousarray(planes.T).view(np.dtype(f"<u{bits.element_size()}")).reshape(-1)
    unsigned = little.astype(little.dtype.newbyteorder("="))
    steps = (unsigned >> 1) ^ (~(unsigned & 1) + 1)
    signed = torch.from_numpy(steps.view(np.dtype(f"i{bits.element_size()}"))).view(bits.shape)
    return _ordered(signed + _ordered(bits)).view(after.dtype)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().view(_INTEGERS[tensor.dtype])


def _ordered(bits: Tensor) -> Tensor:
    """Bit patterns of floats, which have a sign bit, to integers in the order of the floats, and back."""
    return bits ^ ((bits >> (8 * bits.element_size() - 1)) & torch.iinfo(bits.dtype).max)
