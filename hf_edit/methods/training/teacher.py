"""What the base says on texts that are not edited: the teacher of the divergence term."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from hf_edit.edits import Edit
from hf_edit.errors import ConfigError
from hf_edit.methods.base import Preservation
from hf_edit.methods.training.texts import Batch, Text, answer_logits, prepared
from hf_edit.models.editable import EditableModel
from hf_edit.prompting import Encoded, PromptFormat


LIKELIEST = 64
"""Tokens of each distribution that are kept one by one; the rest counts as one event."""


MOST_STRANGERS = 256
"""Of all edits together, unless there are more edits: training draws each a few times, and asking takes time."""


def strangers_of(preserve: Preservation, edits: Sequence[Edit], most: int) -> Sequence[Encoded]:
    """Questions of the same kind with the base's own answers: at most `most` for each edit, fewer for many edits."""
    each = min(most, -(-MOST_STRANGERS // len(edits)))
    return preserve.strangers(edits, each) if each else ()


def answered(conversations: Sequence[Encoded]) -> list[Encoded]:
    """Those to which the base said anything."""
    return [encoded for encoded in conversations if encoded.answer_ids]


def untaught(
    pools: Sequence[Sequence[Encoded]], prompts: PromptFormat, edits: Iterable[Edit], trained: Iterable[Text]
) -> list[list[Encoded]]:
    """Pools without the questions of edits, in any wording given or trained: not to be answered as before."""
    taught = {tuple(text.ids[: text.start].tolist()) for text in trained}
    for prompt in chain.from_iterable((edit.prompt, *edit.paraphrases) for edit in edits):
        with suppress(ConfigError):  # a paraphrase that the format does not take is in no pool
            taught.add(prompts.prompt_ids(prompt))
    return [[text for text in pool if text.prompt_ids not in taught] for pool in pools]


class Teacher:
    """The base's distributions along its own answers. A text is run when it is first drawn, and alone, so that what
    is learned of it does not depend on which texts came together.

    Args:
        model: the base; nothing may be attached to it when a text is new.
        pools: questions with the base's own answers, by kind, from which is drawn in turn.
        first: the lowest edited block.
        heard: what was learned of texts so far, which teachers of one model and first block may share.
    """

    def __init__(
        self,
        model: EditableModel,
        pools: Sequence[Sequence[Encoded]],
        first: int,
        heard: dict[Encoded, Known] | None = None,
    ) -> None:
        self.encoded = [encoded for pool in pools for encoded in pool]
        self._sizes = [len(pool) for pool in pools if pool]
        self._model, self._first = model, first
        self._known = {} if heard is None else heard

    def drawn(self, count: int, generator: torch.Generator) -> list[Known]:
        """Up to `count` texts, none twice, from the pools in turn, beginning with any."""
        if not self._sizes:
            return []
        begins = [sum(self._sizes[:i]) for i in range(len(self._sizes))]
        orders = [torch.randperm(size, generator=generator).tolist() for size in self._sizes]
        turn = int(torch.randint(len(self._sizes), (1,), generator=generator))
        found: list[Known] = []
        for i in range(turn, turn + count):
            pool, place = i % len(self._sizes), (i - turn) // len(self._sizes)
            if place < len(orders[pool]):
                found.append(self._heard(self.encoded[begins[pool] + orders[pool][place]]))
        return found

    @torch.no_grad()
    def _heard(self, encoded: Encoded) -> Known:
        if encoded not in self._known:
            (text,) = prepared(self._model, [encoded], self._first)
            logits = answer_logits(self._model, Batch.of([text]), self._first)
            likeliest = logits.float().log_softmax(-1).topk(min(LIKELIEST, logits.shape[-1]), dim=-1)
            self._known[encoded] = Known(text, likeliest.values, likeliest.indices)
        return self._known[encoded]


@dataclass(frozen=True, eq=False)
class Known:
    """A text and what the base says along its answer.

    Args:
        log_probs: (A, k), of the likeliest tokens at each place.
        tokens: (A, k), which they are.
    """

    text: Text
    log_probs: Tensor
    tokens: Tensor


def divergence(logits: Tensor, known: Sequence[Known]) -> Tensor:
    """Mean KL(base || model) in nats over the places, with all but the likeliest tokens taken as one event.

    Joining events can only lower a KL divergence, by little where the rest is rare.

    Args:
        logits: (N, V) of the model, row by row.
        known: the texts that they are of.
    """
    base, ids = (torch.cat(parts) for parts in zip(*((k.log_probs, k.tokens) for k in known), strict=True))
    model = logits.float().log_softmax(-1).gather(-1, ids)  # (N, k)
    p = base.exp()
    tiny = torch.finfo(p.dtype).eps
    rest = (1 - p.sum(-1)).clamp_min(tiny)
    model_rest = (1 - model.exp().sum(-1)).clamp_min(tiny)
    return ((p * (base - model)).sum(-1) + rest * (rest.log() - model_rest.log())).mean()
