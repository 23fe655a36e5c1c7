"""One chunk of each of several edits, and the change at its key that is asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from hf_edit.methods.anyedit.objective import token_weights
from hf_edit.methods.descent import Losses
from hf_edit.methods.keyed import KeyedRows, at_first
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.models.prefix import Prefix


@dataclass(frozen=True, eq=False)
class Spans:
    """Tokens of B texts side by side, padded on the right.

    Args:
        ids, mask: (B, n); the mask is 0 at padding.
        entering: (B, n, d), the residual stream before the edited block.
    """

    ids: Tensor
    mask: Tensor
    entering: Tensor

    @classmethod
    def of(cls, ids: Sequence[Tensor], entering: Sequence[Tensor]) -> Spans:
        """Of ids (n_i,) and what enters the edited block with them, (n_i, d)."""
        return cls(
            pad_sequence(list(ids), batch_first=True),
            pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
            pad_sequence(list(entering), batch_first=True),
        )


@dataclass(frozen=True, eq=False)
class Before:
    """What stands before the keys of B texts.

    Args:
        prefix: of P tokens.
        mask: (B, P), 0 at the padding, which is in front of the tokens.
    """

    prefix: Prefix
    mask: Tensor

    def rows(self, rows: Tensor) -> Before:
        """Some of the texts, by index."""
        return Before(self.prefix.rows(rows), self.mask[rows])

    def followed_by(
        self, model: EditableModel, linear: EditableLinear, spans: Spans, changes: Tensor | None = None
    ) -> Before:
        """With these tokens behind, and `changes` (B, d) in place at the first of them."""
        mask = torch.cat([self.mask, spans.mask], dim=1)
        prefix = model.extended(
            self.prefix,
            spans.ids,
            start={linear.layer: spans.entering},
            shift=None if changes is None else (linear, at_first(changes, spans.ids.shape[1])),
            mask=mask,
        )
        return Before(*prefix.aligned(mask))

    def keyed(self, spans: Spans) -> KeyedRows:
        """The texts with these tokens, all of which predict, from their keys on."""
        mask = torch.cat([self.mask, spans.mask], dim=1)
        return KeyedRows(spans.ids, spans.entering, self.prefix, mask, spans.mask.bool())


class Windows:
    """The tokens that say one chunk of each edit, and what its change is to prepare.

    Args:
        rows: of B texts; n tokens run.
        labels: (B, n) what each token predicts.
        lengths: per text, tokens of the nested texts that the objective is over: the chunk itself, then longer ones.
        learning_rates: (B,) of the descent.
    """

    n_figures = 1

    def __init__(
        self,
        model: EditableModel,
        linear: EditableLinear,
        rows: KeyedRows,
        labels: Tensor,
        lengths: Sequence[Sequence[int]],
        learning_rates: Tensor,
    ) -> None:
        self._model, self._linear, self._rows, self._labels = model, linear, rows, labels
        n = labels.shape[1]
        own = torch.tensor([each[0] for each in lengths], device=labels.device)[:, None]
        self._own = (torch.arange(n, device=labels.device) < own).to(learning_rates) / own
        start = learning_rates.new_zeros(len(lengths), linear.d_out)
        self._weights = token_weights(self._token_losses, start, lengths, n, learning_rates)

    def losses(self, vectors: Tensor) -> Losses:
        """Of the changes (B, d); the figure is the mean over the chunk's own tokens."""
        each = self._token_losses(vectors)
        loss = (each * self._weights).sum(dim=1)
        return Losses(loss, stopping=loss, figures=(each * self._own).sum(dim=1, keepdim=True))

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the edits alone, (B,) bool."""
        self._rows, self._labels = self._rows.rows(rows), self._labels[rows]
        self._own, self._weights = self._own[rows], self._weights[rows]

    def _token_losses(self, vectors: Tensor) -> Tensor:
        """(B, n), zero at padding."""
        where = self._rows.where
        logits = self._rows.logits(self._model, self._linear, vectors)
        losses = F.cross_entropy(logits, self._labels[where], reduction="none")
        return losses.new_zeros(where.shape).masked_scatter(where, losses)
