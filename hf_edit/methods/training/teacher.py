"""What the base says on texts that are not edited: the teacher of the divergence term."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_edit.methods.training.texts import Batch, Text, answer_logits
from hf_edit.models.editable import EditableModel


LIKELIEST = 64
"""Tokens of each distribution that are kept one by one; the rest counts as one event."""


class Teacher:
    """The base's distributions along its own answers, computed when a text is first drawn.

    Args:
        model: the base; nothing may be attached to it when a text is new.
        pools: questions with the base's own answers, by kind: of each the same number is drawn.
        first: the lowest edited block.
    """

    def __init__(self, model: EditableModel, pools: Sequence[Sequence[Text]], first: int) -> None:
        self.texts = [text for pool in pools for text in pool]
        self._sizes = [len(pool) for pool in pools if pool]
        self._model, self._first = model, first
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def drawn(self, count: int, generator: torch.Generator) -> list[int]:
        """Indices of about `count` texts, none twice, evenly from the pools."""
        indices: list[int] = []
        begin = 0
        for size in self._sizes:
            share = max(1, count // len(self._sizes))
            indices += (begin + torch.randperm(size, generator=generator)[:share]).tolist()
            begin += size
        return indices

    @torch.no_grad()
    def along(self, drawn: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Log probabilities (N, k) and ids (N, k) of the base's likeliest tokens at the places of these texts."""
        for index in drawn:  # one by one: a distribution is then the same to the bit, whichever come together
            if index not in self._known:
                logits = answer_logits(self._model, Batch.of([self.texts[index]]), self._first)
                likeliest = logits.float().log_softmax(-1).topk(min(LIKELIEST, logits.shape[-1]), dim=-1)
                self._known[index] = likeliest.values, likeliest.indices
        found = [self._known[index] for index in drawn]
        return torch.cat([values for values, _ in found]), torch.cat([ids for _, ids in found])


def divergence(logits: Tensor, known: tuple[Tensor, Tensor]) -> Tensor:
    """Mean KL(base || model) in nats over the places, with all but the likeliest tokens taken as one event.

    Joining events can only lower a KL divergence, by little where the rest is rare.

    Args:
        logits: (N, V) of the model.
        known: what `Teacher.along` gave.
    """
    base, ids = known
    model = logits.float().log_softmax(-1).gather(-1, ids)  # (N, k)
    p = base.exp()
    tiny = torch.finfo(p.dtype).eps
    rest = (1 - p.sum(-1)).clamp_min(tiny)
    model_rest = (1 - model.exp().sum(-1)).clamp_min(tiny)
    return ((p * (base - model)).sum(-1) + rest * (rest.log() - model_rest.log())).mean()
