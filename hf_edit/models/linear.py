"""A map that an edit may change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hf_edit.models.experts import Experts
from hf_edit.models.hooks import reading_input
from hf_edit.models.shapes import base_of


@dataclass(frozen=True)
class EditableLinear:
    """A linear map that an edit may change.

    Args:
        name: full module name inside the ...ForCausalLM, without adapter wrappers.
        layer: index of its block.
        module: what the model calls there: the linear, the adapter layer around it, or the mixture of the experts.
        d_out, d_in: its size; deltas are always (d_out, d_in).
        transposed: the weight is stored (d_in, d_out), as in GPT-2's Conv1D.
        experts: the output maps of fused experts, seen as one map; `name` is then that of their parameter.
    """

    name: str
    layer: int
    module: nn.Module
    d_out: int
    d_in: int
    transposed: bool
    experts: Experts | None = None

    def reading_input(self, into: dict[Any, Tensor], key: Any, batch: tuple[int, ...]) -> Any:
        """A context that keeps what enters the map, (B, T, d_in)."""
        if self.experts is not None:
            return self.experts.reading_input(into, key, batch)
        return reading_input(self.module, into, key, batch)

    @property
    def weight(self) -> Tensor:
        """As the base stores it."""
        if self.experts is not None:
            return self.experts.weight
        weight: Tensor = base_of(self.module).weight  # type: ignore[assignment]
        return weight
