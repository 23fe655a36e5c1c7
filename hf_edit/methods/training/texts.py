"""Texts that an update is trained on: what enters the lowest edited block is computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.prompting import Encoded


TRACED_AT_ONCE = 16
SCALED_BY = 4
"""Texts that say how large hidden states are."""


@dataclass(frozen=True, eq=False)
class Text:
    """A prompt and the beginning of its answer, or all of it.

    Args:
        ids: (T,)
        states: (T, d), the residual stream before the lowest edited block, which no update changes; or how it is
            found anew, where there is no room to keep it.
        start: where the answer begins.
    """

    ids: Tensor
    states: Tensor | Callable[[], Tensor]
    start: int

    @property
    def entering(self) -> Tensor:
        """(T, d), the residual stream before the lowest edited block. Not to be asked for while hooks are in place."""
        return self.states if isinstance(self.states, Tensor) else self.states()

    @property
    def labels(self) -> Tensor:
        """(A,), the answer's tokens."""
        return self.ids[self.start :]


@dataclass(frozen=True, eq=False)
class Batch:
    """Texts run together, padded on the right. The last token of each predicts nothing and is left out.

    Args:
        ids: (B, T)
        entering: (B, T, d)
        where: (B, T), the places that predict an answer's token, N in all.
        labels: (N,), what they are to predict, row by row.
        rows: (N,), the row that each belongs to.
    """

    ids: Tensor
    entering: Tensor
    where: Tensor
    labels: Tensor
    rows: Tensor

    @classmethod
    def of(cls, texts: Sequence[Text]) -> Batch:
        """The batch of these texts."""
        device, width = texts[0].ids.device, max(len(t.ids) for t in texts) - 1
        states = [text.entering for text in texts]
        ids = torch.zeros(len(texts), width, dtype=torch.long, device=device)
        entering = states[0].new_zeros(len(texts), width, states[0].shape[1])
        where = torch.zeros(len(texts), width, dtype=torch.bool, device=device)
        for row, text in enumerate(texts):
            n = len(text.ids) - 1
            ids[row, :n], entering[row, :n] = text.ids[:n], states[row][:n]
            where[row, text.start - 1 : n] = True
        counts = torch.tensor([len(t.labels) for t in texts], device=device)
        rows = torch.arange(len(texts), device=device).repeat_interleave(counts)
        return cls(ids, entering, where, torch.cat([t.labels for t in texts]), rows)

    def mean_per_text(self, values: Tensor) -> Tensor:
        """(B,): the mean over each text's own places of `values` (N,)."""
        sums = values.new_zeros(self.ids.shape[0]).index_add(0, self.rows, values)
        return sums / torch.bincount(self.rows)

    def least_per_text(self, values: Tensor) -> Tensor:
        """(B,): the smallest at each text's own places of `values` (N,)."""
        return values.new_full(self.ids.shape[:1], torch.inf).scatter_reduce(0, self.rows, values, "amin")


def prepared(model: EditableModel, encoded: Sequence[Encoded], first: int) -> list[Text]:
    """The texts as blocks from `first` on see them."""
    ids = [one.ids for one in encoded]

    def traced(part: Sequence[int]) -> list[Text]:
        rows, _ = model.ids([ids[i] for i in part])
        entering = model.trace(rows, entering=[first]).entering[first]
        return [
            Text(rows[row, : len(ids[i])], entering[row, : len(ids[i])].clone(), encoded[i].answer_start)
            for row, i in enumerate(part)
        ]

    if not model.memory.keeps(sum(map(len, ids)) * model.hidden_size * model.dtype.itemsize):
        tensors = [torch.tensor(one, device=model.device) for one in ids]
        return [
            Text(one, partial(_traced, model, one, first), e.answer_start)
            for one, e in zip(tensors, encoded, strict=True)
        ]
    parts = model.memory.in_parts("tracing", range(len(ids)), traced, lambda i: len(ids[i]), TRACED_AT_ONCE)
    return [text for part in parts for text in part]


def _traced(model: EditableModel, ids: Tensor, first: int) -> Tensor:
    return model.trace(ids[None], entering=[first]).entering[first][0]


def answer_logits(model: EditableModel, batch: Batch, first: int) -> Tensor:
    """(N, V): the predictions at the places of the batch, with whatever update is in place."""
    return model.logits_at(batch.ids, batch.where, start={first: batch.entering})


@torch.no_grad()
def inputs_along(
    model: EditableModel, linears: Sequence[EditableLinear], texts: Iterable[Text], first: int
) -> Iterator[tuple[Text, dict[str, Tensor]]]:
    """Each text with what enters the linears over it, by name, (T - 1, d_in): its last token predicts nothing."""
    for text in texts:
        trace = model.trace(text.ids[None, :-1], inputs=linears, start={first: text.entering[None, :-1]})
        yield text, {name: keys[0] for name, keys in trace.inputs.items()}


@torch.no_grad()
def hidden_scale(model: EditableModel, linears: Sequence[EditableLinear], texts: Sequence[Text], first: int) -> float:
    """Root mean square of an entry of the hidden states that the linears change: of the residual stream behind them,
    or of their own output where that does not arrive there unchanged.

    The median over the tokens of a few texts, since a first token's may be a hundred times the others', and the mean
    over the linears.
    """
    layers = [linear.layer for linear in linears] if model.writes_residual else []
    outputs = [] if model.writes_residual else linears
    found: list[Tensor] = []
    for text in texts[:SCALED_BY]:
        trace = model.trace(text.ids[None], leaving=layers, outputs=outputs, start={first: text.entering[None]})
        states = [*map(trace.leaving.__getitem__, layers), *(trace.outputs[linear.name] for linear in outputs)]
        found += [state[0].double().square().mean(dim=-1).sqrt().median().cpu() for state in states]
    return float(torch.stack(found).mean())


def moments_over(
    model: EditableModel, linears: Sequence[EditableLinear], texts: Iterable[Text], first: int, *, answers: bool
) -> dict[str, Tensor]:
    """Linear name -> mean of k k^T over the texts, (d_in, d_in) float64; empty without texts.

    Args:
        answers: over the answers' tokens alone.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    for text, inputs in inputs_along(model, linears, texts, first):
        for name, keys in inputs.items():
            k = keys[text.start if answers else 0 :].double()  # (n, d_in)
            sums[name] = sums[name].addmm_(k.T, k) if name in sums else k.T @ k
        count += k.shape[0]
    return {name: total / max(1, count) for name, total in sums.items()}
