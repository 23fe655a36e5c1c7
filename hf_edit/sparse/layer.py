"""The layer of column-sparse adapters: a linear map beside which a few of its input columns have values added."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_edit.errors import BaseMismatchError, ComposeError
from hf_edit.models.shapes import linear_shape
from hf_edit.sparse.config import COLUMNS, VALUES


class SparseLinear(nn.Module, BaseTunerLayer):
    """`nn.Linear` or `Conv1D` with any number of column-sparse adapters: y + sum x[..., columns] @ values^T.

    Args:
        base_layer: the linear map, or another adapter's layer around it.
        adapter_name: the first adapter.
        count: how many columns it changes.

    Raises:
        BaseMismatchError: the map has fewer inputs than that.
        UnsupportedModelError: it is no linear map.
    """

    # of BaseTunerLayer, which type checkers do not see behind the __getattr__ of nn.Module
    active_adapters: list[str]
    get_base_layer: Callable[[], nn.Module]
    set_adapter: Callable[..., None]
    _move_adapter_to_device_of_base_layer: Callable[[str], None]

    adapter_layer_names = (VALUES,)
    other_param_names = (COLUMNS, "scaling")

    def __init__(self, base_layer: nn.Module, adapter_name: str, count: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.hf_edit_sparse_values = nn.ParameterDict()
        self.hf_edit_sparse_columns = BufferDict(persistent=True)
        self.scaling: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self._replaced: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # columns, what they were and what they became
        self.update_layer(adapter_name, count)

    def update_layer(self, adapter_name: str, count: int, inference_mode: bool = False) -> None:
        """Add an adapter that changes nothing yet; loaders put its columns and values in place."""
        d_out, d_in = linear_shape(self.get_base_layer())
        if count > d_in:
            raise BaseMismatchError(
                f"The adapter changes {count} columns of a linear map with {d_in} inputs.",
                "Load it on the base that it was made for.",
            )
        self.hf_edit_sparse_values[adapter_name] = nn.Parameter(torch.zeros(d_out, count))
        self.hf_edit_sparse_columns[adapter_name] = torch.arange(count, dtype=torch.int32)
        self.scaling[adapter_name] = 1.0
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Make an adapter count `scale` times."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        dtype = y.dtype
        for name in self.active_adapters:
            if name in self.hf_edit_sparse_values and name not in self.merged_adapters:
                values = self.hf_edit_sparse_values[name]
                chosen = x.index_select(-1, self.hf_edit_sparse_columns[name]).to(values.dtype)
                y = y + nn.functional.linear(chosen, values) * self.scaling[name]
        return y.to(dtype)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base's weight, by default the active ones; `unmerge` takes them back bit for bit.

        Args:
            safe_merge: refuse what would not be finite.
        """
        weight = self._weight()
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.hf_edit_sparse_values:
                continue
            columns, values = self.hf_edit_sparse_columns[name].long(), self.hf_edit_sparse_values[name]
            before = weight[:, columns]
            exact = torch.promote_types(weight.dtype, values.dtype)
            after = (before.to(exact) + values.to(exact) * self.scaling[name]).to(weight.dtype)
            if safe_merge and not torch.isfinite(after).all():
                raise ComposeError(f"The adapter {name!r} holds NaN or infinity.", "Get it anew: it is damaged.")
            weight[:, columns] = after
            self._replaced[name] = columns, before, after
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the weight back that was there before `merge`.

        What another adapter has added to the same columns since then stays: there, the change is subtracted.
        """
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        weight = self._weight()
        while self.merged_adapters:
            kept = self._replaced.pop(self.merged_adapters.pop())
            columns, before, after = kept[0].to(weight.device), *(part.to(weight) for part in kept[1:])
            now = weight[:, columns]
            weight[:, columns] = torch.where(now == after, before, now - (after - before))

    def _weight(self) -> Tensor:
        """The base's weight as (d_out, d_in), to be written to."""
        base: Any = self.get_base_layer()
        weight: Tensor = base.weight.data
        if not weight.is_floating_point():
            raise ComposeError(
                "Adapters cannot be merged into quantised weights.", "Keep it attached, or load the base unquantised."
            )
        return weight.T if isinstance(base, Conv1D) else weight
