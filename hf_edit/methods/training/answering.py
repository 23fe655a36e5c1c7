"""How well texts are answered with an update in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_edit.methods.training.texts import Batch, Text, answer_logits
from hf_edit.models.editable import EditableModel
from hf_edit.models.generation import MARGIN
from hf_edit.solvers.low_rank import LowRankDelta


R = TypeVar("R")
SHORTEST = 0.6


def answers(
    model: EditableModel, first: int, texts: Sequence[Text], deltas: Mapping[str, LowRankDelta]
) -> tuple[Tensor, Tensor]:
    """Per text the mean loss over the answer's tokens, (B,), and its margin, (B,), as of `losses_of`."""

    def judged(part: Sequence[int]) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), model.updated(deltas):
            return losses_of(model, first, [texts[i] for i in part])[:2]

    return in_order(by_length(model, "judging", texts, judged))


@torch.no_grad()
def margins_of(
    model: EditableModel, first: int, texts: Sequence[Text], deltas: Mapping[str, LowRankDelta]
) -> list[Tensor]:
    """Per text (A,): by how much the logit of each of the answer's tokens exceeds all others'."""

    def judged(part: Sequence[int]) -> Sequence[Tensor]:
        batch = Batch.of([texts[i] for i in part])
        with model.updated(deltas):
            logits = answer_logits(model, batch, first)
        return _margins(logits, batch.labels).split([len(texts[i].labels) for i in part])

    found = {
        i: margins
        for part, every in by_length(model, "judging", texts, judged)
        for i, margins in zip(part, every, strict=True)
    }
    return [found[i] for i in range(len(texts))]


def losses_of(model: EditableModel, first: int, texts: Sequence[Text]) -> tuple[Tensor, Tensor, Tensor]:
    """Of texts run together with whatever update is in place, each (B,): the mean loss over the answer's tokens; the
    least by which the logit of one of them exceeds all others', above zero where all are the likeliest; and the mean
    loss over those that are not by more than rounding, zero where there is none."""
    batch = Batch.of(texts)
    logits = answer_logits(model, batch, first)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, batch.labels, reduction="none")
    margins = _margins(logits.detach(), batch.labels)
    unclear = (margins < MARGIN).to(losses.dtype)
    share = batch.mean_per_text(unclear)
    hard = batch.mean_per_text(unclear * losses) / share.where(share > 0, 1)
    return batch.mean_per_text(losses), batch.least_per_text(margins), hard


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,): each label's logit of (N, V) less the largest other one."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    own = logits.gather(1, labels[:, None])[:, 0]
    largest, tokens = logits.topk(2)
    return own - torch.where(tokens[:, 0] == labels, largest[:, 1], largest[:, 0])


def by_length(
    model: EditableModel,
    kind: str,
    texts: Sequence[Text],
    work: Callable[[Sequence[int]], R],
    *,
    backward: bool = False,
) -> Iterator[tuple[Sequence[int], R]]:
    """What `work` makes of texts, by their indices: those alike in length run together, as far as memory goes."""
    lengths = [len(text.ids) for text in texts]
    for group in alike_in_length(lengths):
        yield from model.memory.in_parts(
            kind, group, lambda part: (part, work(part)), lengths.__getitem__, backward=backward
        )


def in_order(judged: Iterable[tuple[Sequence[int], tuple[Tensor, Tensor]]]) -> tuple[Tensor, Tensor]:
    """Losses and margins of all texts, from those of parts."""
    parts, found = zip(*judged, strict=True)
    back = torch.tensor([i for part in parts for i in part]).argsort()
    losses, margins = (torch.cat(values) for values in zip(*found, strict=True))
    return losses[back], margins[back]


def alike_in_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in groups whose shortest is no shorter than SHORTEST of the longest: padding costs as much as text."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not groups or lengths[i] < SHORTEST * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(i)
    return groups
