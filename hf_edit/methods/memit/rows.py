"""The texts of a batch of facts as tensors, cut at their keys.

What stands before a key never changes, and is kept as attention states of the blocks above the edited one. What runs
at every step are the tokens from the key on. Rows are aligned at the key: padding of prefixes is on their left, that
of the rest on its right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_edit.methods.memit.facts import Fact, KeyedText
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.models.prefix import Prefix


NO_LABEL = -100


@dataclass(frozen=True, eq=False)
class Rows:
    """R texts of F facts. In each, the token at the key comes first.

    Args:
        facts: (R,) which fact a row belongs to.
        ids: (R, n)
        entering: (R, n, d) residual stream before the edited block.
        prefix: of the P tokens before.
        mask: (R, P + n), 0 at padding.
        where: (R, n) tokens whose prediction counts.
        labels: (R, n) what they are to predict; NO_LABEL in the rows that are to stay as they are.
        shares: (R,) weight of each of a row's predictions in the loss of its fact.
    """

    facts: Tensor
    ids: Tensor
    entering: Tensor
    prefix: Prefix
    mask: Tensor
    where: Tensor
    labels: Tensor
    shares: Tensor

    def of_facts(self, kept: Tensor) -> Rows:
        """The rows of some facts, which are numbered anew; `kept` (F,) is true for these."""
        rows = kept[self.facts]
        return Rows(
            facts=(kept.cumsum(0) - 1)[self.facts[rows]],
            ids=self.ids[rows],
            entering=self.entering[rows],
            prefix=self.prefix.rows(rows),
            mask=self.mask[rows],
            where=self.where[rows],
            labels=self.labels[rows],
            shares=self.shares[rows],
        )

    def log_probabilities(self, model: EditableModel, linear: EditableLinear, deltas: Tensor) -> Tensor:
        """(N, V) at the N places of `where`, row by row, with `deltas` (F, d) added at the keys."""
        shift = F.pad(deltas[self.facts][:, None], (0, 0, 0, self.ids.shape[1] - 1))
        logits = model.logits_at(
            self.ids,
            self.where,
            start={linear.layer: self.entering},
            shift=(linear, shift),
            prefix=self.prefix,
            mask=self.mask,
        )
        return logits.to(deltas.dtype).log_softmax(dim=-1)

    def after_essences(self, log_probabilities: Tensor, n_facts: int) -> Tensor:
        """(n_facts, V) what `log_probabilities` say where a fact's predictions are to stay; 0 where nothing is."""
        row, staying = self._predictions()
        kept = log_probabilities.new_zeros(n_facts, log_probabilities.shape[1])
        return kept.index_copy(0, self.facts[row[staying]], log_probabilities[staying])

    def losses(self, log_probabilities: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """Per fact the negative log likelihood of its target and the KL(base || now) on what is to stay, each (F,).

        Args:
            base: (F, V) what `after_essences` gave for the unedited model.
        """
        row, staying = self._predictions()
        taught = row[~staying]
        labels = self.labels[self.where][~staying]
        nll = -log_probabilities[~staying].gather(1, labels[:, None])[:, 0] * self.shares[taught]
        facts = self.facts[row[staying]]
        kl = (base[facts].exp() * (base[facts] - log_probabilities[staying])).sum(dim=1)
        zeros = log_probabilities.new_zeros(len(base))
        return zeros.index_add(0, self.facts[taught], nll), zeros.index_add(0, facts, kl)

    def _predictions(self) -> tuple[Tensor, Tensor]:
        """(N,) the row of each prediction, and whether it is one that is to stay."""
        return self.where.nonzero()[:, 0], self.labels[self.where] == NO_LABEL


def rows_of(model: EditableModel, linear: EditableLinear, facts: Sequence[Fact]) -> tuple[Rows, Tensor]:
    """The rows of these facts, and the unedited hidden state at the key of each fact's own prompt, (F, d).

    That state is the residual stream after the edited block, or the edited map's own output where a norm stands
    between (Gemma 2 and 3).
    """
    parts = [
        (index, text, share / len(text.encoded.answer_ids))
        for index, fact in enumerate(facts)
        for text, share in zip(fact.texts, fact.shares(), strict=True)
    ]
    parts += [(index, fact.essence, 0.0) for index, fact in enumerate(facts) if fact.essence is not None]
    owners, texts, shares = zip(*parts, strict=True)

    inputs = [_inputs(text) for text in texts]
    ids, mask = model.ids(inputs)
    keys = torch.tensor([text.key for text in texts], device=ids.device)
    trace = model.trace(ids, mask, entering=[linear.layer], outputs=[linear], leaving=[linear.layer])
    stream = trace.leaving[linear.layer] if model.writes_residual else trace.outputs[linear.name]
    own = [owners.index(index) for index in range(len(facts))]  # a fact's own prompt is its first text

    before = int(keys.max())
    after = max(len(row) - text.key for row, text in zip(inputs, texts, strict=True))
    columns = torch.arange(-before, after, device=ids.device) + keys[:, None]  # (R, P + n): where each token stood
    there = (columns >= 0) & (columns < mask.sum(dim=1, keepdim=True))
    columns = columns.clamp(0, ids.shape[1] - 1)
    aligned, aligned_mask = ids.gather(1, columns), there.to(mask.dtype)
    entering = trace.entering[linear.layer]
    entering = entering.gather(1, columns[..., None].to(entering.device).expand(-1, -1, entering.shape[-1]))
    prefix = model.no_prefix(linear.layer)
    if before:
        prefix = model.extended(
            prefix,
            aligned[:, :before],
            start={linear.layer: entering[:, :before]},
            mask=aligned_mask[:, :before],
        )
    labels = torch.full((len(texts), after), NO_LABEL)
    where = torch.zeros((len(texts), after), dtype=torch.bool)
    for row, text in enumerate(texts):
        answer = text.encoded.answer_ids
        first = text.encoded.answer_start - 1 - text.key
        where[row, first : first + max(len(answer), 1)] = True
        labels[row, first : first + len(answer)] = torch.tensor(answer, dtype=labels.dtype)
    accumulate = torch.promote_types(model.dtype, torch.float32)
    rows = Rows(
        facts=torch.tensor(owners, device=ids.device),
        ids=aligned[:, before:],
        entering=entering[:, before:],
        prefix=prefix,
        mask=aligned_mask,
        where=where.to(ids.device),
        labels=labels.to(ids.device),
        shares=torch.tensor(shares, dtype=accumulate, device=ids.device),
    )
    return rows, stream[own, keys[own].to(stream.device)].to(ids.device, accumulate)


def _inputs(text: KeyedText) -> tuple[int, ...]:
    """What is run: everything but an answer's last token, which predicts nothing."""
    ids = text.encoded.ids
    return ids[:-1] if text.encoded.answer_ids else ids
