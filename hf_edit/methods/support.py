"""How many input columns of each map an update may change: the budget of a sparse pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_edit.errors import ConfigError
from hf_edit.models.editable import EditableLinear
from hf_edit.settings import Settings, setting
from hf_edit.solvers.support import most_columns


@dataclass(frozen=True)
class SupportSettings(Settings):
    """A budget in columns or in bytes; without one an update may change all of a map."""

    columns: int | None = setting(
        None,
        "Input columns of each edited map that the update may change, those that carry the edits' keys at the least "
        "cost to everything else: for the layout sparse; none: all.",
        at_least=1,
    )
    column_bytes: int | None = setting(
        None, "In place of columns: bytes that the tensors of the sparse adapter may have in all.", at_least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.columns is not None and self.column_bytes is not None:
            raise ConfigError(
                f"columns = {self.columns} and column_bytes = {self.column_bytes} are two budgets.", "Give one."
            )

    @property
    def is_sparse(self) -> bool:
        """Whether there is a budget."""
        return self.columns is not None or self.column_bytes is not None

    def columns_of(self, linears: Sequence[EditableLinear]) -> dict[str, int]:
        """Linear name -> most columns of it that may change; empty without a budget: all of each.

        Raises:
            ConfigError: a budget that leaves no column, or more than a map has.
        """
        return columns_each(linears, self.columns, self.column_bytes) if self.is_sparse else {}


def columns_each(linears: Sequence[EditableLinear], columns: int | None, size: int | None) -> dict[str, int]:
    """Linear name -> how many of its columns a budget in columns, or one in bytes for all linears, comes to.

    Raises:
        ConfigError: not exactly one budget, or one out of range.
    """
    if (columns is None) == (size is None):
        raise ConfigError(f"The budget is columns={columns} and bytes={size}.", "Give one of the two.")
    most = {linear.name: most_columns((linear.d_out, linear.d_in)) for linear in linears}
    if columns is None:
        each = sum(4 * linear.d_out + 4 for linear in linears)  # fp32 values and an int32 index per linear
        columns = (size or 0) // each
        if columns < 1:
            raise ConfigError(f"bytes = {size} is below one column of each weight.", f"Give at least {each}.")
    elif not 1 <= columns <= max(most.values()):
        raise ConfigError(
            f"columns = {columns} is outside 1..{max(most.values())}.", "Choose another number of columns."
        )
    return {name: min(columns, limit) for name, limit in most.items()}
