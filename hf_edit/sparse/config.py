"""Configuration of column-sparse adapters, and the names that PEFT and the files know them by."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig

from hf_edit.errors import PackError


class SparseType(str):
    """A `peft_type` of our own: what `adapter_config.json` says, with the `value` that transformers asks types for."""

    value = "HF_EDIT_SPARSE"


# Where hf_edit is not imported, all that PEFT and transformers say is KeyError with this text, so it is the remedy.
PEFT_TYPE = SparseType(f"{SparseType.value} (first: pip install hf-edit, then in Python: import hf_edit)")
PREFIX = f"{SparseType.value.lower()}_"
"""Of the adapter's tensors; transformers derives it from the type's `value` in the same way."""
COLUMNS, VALUES = f"{PREFIX}columns", f"{PREFIX}values"
"""Names of the tensors of a module: int32 (n,) and (d_out, n)."""


@dataclass
class SparseConfig(PeftConfig):
    """A change of a few whole input columns of some linear maps: dW[:, columns] = values.

    Raises:
        PackError: a number of columns that is none.
    """

    columns: dict[str, int] = field(
        default_factory=dict,
        metadata={"help": "Full name of each changed module, and how many of its columns change."},
    )
    target_modules: set[str] | None = field(
        default=None, metadata={"help": "Follows from `columns`; here because PEFT looks for it."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        for name, count in self.columns.items():
            if type(count) is not int or count < 1:
                raise PackError(f"The adapter changes {count!r} columns of {name}.", "Get it anew: it is damaged.")
        self.target_modules = set(self.columns)
