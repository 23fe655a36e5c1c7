"""values.safetensors: what each edit asks of each linear. Tensors `<edit index>.<module>.positions` and `.values`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_edit.errors import PackError
from hf_edit.methods.base import EditSource, KeyValues


_REMEDY = "Get the pack anew from where it was published; its adapter works without values.safetensors."


def source_tensors(source: EditSource) -> dict[str, Tensor]:
    """The content of values.safetensors."""
    tensors = {}
    for index, asked in enumerate(source):
        for module, wanted in asked.items():
            positions = wanted.positions.detach().to("cpu", torch.int64)
            tensors[f"{index}.{module}.positions"] = positions.clone()  # layers may share one tensor, a file may not
            tensors[f"{index}.{module}.values"] = wanted.values.detach().to("cpu", torch.float32).contiguous()
    return tensors


def read_source(tensors: Mapping[str, Tensor], count: int) -> EditSource:
    """Undo `source_tensors` for `count` edits.

    Raises:
        PackError: a name that does not belong, or positions without values.
    """
    source: list[dict[str, KeyValues]] = [{} for _ in range(count)]
    indices = {str(index): index for index in range(count)}
    for name in sorted(tensors):
        index, _, rest = name.partition(".")
        module, _, kind = rest.rpartition(".")
        partner = {"positions": "values", "values": "positions"}.get(kind)
        if index not in indices or not module or f"{index}.{module}.{partner}" not in tensors:
            raise PackError(f"values.safetensors holds {name!r}, which belongs to none of {count} edits.", _REMEDY)
        if kind == "positions":
            source[indices[index]][module] = KeyValues(tensors[name], tensors[f"{index}.{module}.values"])
    return tuple(source)


def check_source(source: EditSource, shapes: Mapping[str, tuple[int, int]], count: int) -> None:
    """Check a source against the deltas' shapes (module -> (d_out, d_in)) and the number of edits.

    Raises:
        PackError: something that the pack does not declare, or that is not finite.
    """
    if len(source) != count:
        raise PackError(f"The source is of {len(source)} edits, the pack of {count}.", _REMEDY)
    for index, asked in enumerate(source):
        for module, wanted in asked.items():
            problem = _problem(wanted, shapes.get(module))
            if problem:
                raise PackError(f"The source of edit {index} for {module} {problem}.", _REMEDY)


def _problem(wanted: KeyValues, shape: tuple[int, int] | None) -> str | None:
    positions, values = wanted.positions, wanted.values
    if shape is None:
        return "is of a module that the pack does not change"
    if positions.dtype != torch.int64 or positions.ndim != 1 or (positions < 0).any():
        return "has positions that are not a list of whole numbers from 0 on"
    if values.dtype != torch.float32 or tuple(values.shape) != (len(positions), shape[0]):
        return f"has {values.dtype} values of shape {tuple(values.shape)}, not ({len(positions)}, {shape[0]})"
    if not torch.isfinite(values).all():
        return "has values that are not finite"
    return None
