"""The texts of a batch of facts as tensors, cut at their keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_edit.methods.keyed import KeyedRows
from hf_edit.methods.memit.facts import Fact, KeyedText
from hf_edit.models.editable import EditableLinear, EditableModel


NO_LABEL = -100


@dataclass(frozen=True, eq=False)
class Rows:
    """R texts of F facts.

    Args:
        texts: in each, the token at the key comes first; n tokens of each run.
        facts: (R,) which fact a row belongs to.
        labels: (R, n) what they are to predict; NO_LABEL in the rows that are to stay as they are.
        shares: (R,) weight of each of a row's predictions in the loss of its fact.
    """

    texts: KeyedRows
    facts: Tensor
    labels: Tensor
    shares: Tensor

    def of_facts(self, kept: Tensor) -> Rows:
        """The rows of some facts, which are numbered anew; `kept` (F,) is true for these."""
        rows = kept[self.facts]
        return Rows(
            texts=self.texts.rows(rows),
            facts=(kept.cumsum(0) - 1)[self.facts[rows]],
            labels=self.labels[rows],
            shares=self.shares[rows],
        )

    def log_probabilities(self, model: EditableModel, linear: EditableLinear, deltas: Tensor) -> Tensor:
        """(N, V) at the N places that count, row by row, with `deltas` (F, d) added at the keys."""
        return self.texts.logits(model, linear, deltas[self.facts]).log_softmax(dim=-1)

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
        labels = self.labels[self.texts.where][~staying]
        nll = -log_probabilities[~staying].gather(1, labels[:, None])[:, 0] * self.shares[taught]
        facts = self.facts[row[staying]]
        kl = (base[facts].exp() * (base[facts] - log_probabilities[staying])).sum(dim=1)
        zeros = log_probabilities.new_zeros(len(base))
        return zeros.index_add(0, self.facts[taught], nll), zeros.index_add(0, facts, kl)

    def _predictions(self) -> tuple[Tensor, Tensor]:
        """(N,) the row of each prediction, and whether it is one that is to stay."""
        return self.texts.where.nonzero()[:, 0], self.labels[self.texts.where] == NO_LABEL


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
    entering = entering.gather(1, columns[..., None].expand(-1, -1, entering.shape[-1]))
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
        texts=KeyedRows(aligned[:, before:], entering[:, before:], prefix, aligned_mask, where.to(ids.device)),
        facts=torch.tensor(owners, device=ids.device),
        labels=labels.to(ids.device),
        shares=torch.tensor(shares, dtype=accumulate, device=ids.device),
    )
    return rows, stream[own, keys[own]].to(accumulate)


def _inputs(text: KeyedText) -> tuple[int, ...]:
    """What is run: everything but an answer's last token, which predicts nothing."""
    ids = text.encoded.ids
    return ids[:-1] if text.encoded.answer_ids else ids
