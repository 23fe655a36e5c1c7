"""Texts cut at their keys: what is run again for every change that is tried there.

What stands before a key never changes, and is kept as a prefix of the blocks above the edited one. What runs at every
step are the tokens from the key on. Rows are aligned at the key: padding of prefixes is on their left, that of the
rest on its right.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.models.prefix import Prefix


@dataclass(frozen=True, eq=False)
class KeyedRows:
    """R texts. In each, the token at the key comes first.

    Args:
        ids: (R, n)
        entering: (R, n, d) residual stream before the edited block.
        prefix: of the P tokens before.
        mask: (R, P + n), 0 at padding.
        where: (R, n) tokens whose prediction counts.
    """

    ids: Tensor
    entering: Tensor
    prefix: Prefix
    mask: Tensor
    where: Tensor

    def rows(self, rows: Tensor) -> KeyedRows:
        """Some of the rows, by index or by a boolean mask (R,)."""
        return KeyedRows(
            self.ids[rows],
            self.entering[rows],
            self.prefix.rows(rows),
            self.mask[rows],
            self.where[rows],
        )

    def logits(self, model: EditableModel, linear: EditableLinear, changes: Tensor) -> Tensor:
        """(N, V) at the N places of `where`, row by row, with `changes` (R, d) added at the keys, in their dtype."""
        return model.logits_at(
            self.ids,
            self.where,
            start={linear.layer: self.entering},
            shift=(linear, at_first(changes, self.ids.shape[1])),
            prefix=self.prefix,
            mask=self.mask,
        ).to(changes.dtype)


def at_first(changes: Tensor, n: int) -> Tensor:
    """(R, n, d): each row's change (R, d) at the first of n tokens, nothing at the others."""
    return F.pad(changes[:, None], (0, 0, 0, n - 1))
