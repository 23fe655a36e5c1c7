"""Letting a model write, by one loop over its own forward: nothing of its generation settings takes part."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from hf_edit.batching import batched
from hf_edit.edits import Prompt
from hf_edit.models.forward import run
from hf_edit.models.prefix import States
from hf_edit.models.trial import carries_context
from hf_edit.prompting import Encoded, PromptFormat


Choice = Callable[[Tensor], Tensor]
"""Chooses the next token of each row: logits (B, V) -> (B,)."""
WORTH_SHARING = 8
"""Fewest tokens that all rows must begin with, as under one system prompt, for these to run once."""


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token of each row: (B, V) -> (B,)."""
    return logits.argmax(dim=-1)


def sampling(generator: torch.Generator, top_k: int) -> Choice:
    """Draws from the `top_k` likeliest tokens at temperature 1.

    Args:
        generator: of the CPU, so that equal logits give equal text on every device.
    """

    def choose(logits: Tensor) -> Tensor:
        likeliest = logits.float().topk(min(top_k, logits.shape[-1]))  # the rest of a large vocabulary costs nothing
        drawn = torch.multinomial(likeliest.values.softmax(dim=-1).cpu(), 1, generator=generator)
        return likeliest.indices.gather(1, drawn.to(logits.device))[:, 0]

    return choose


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    stop_ids: Container[int],
    max_new_tokens: int,
    choose: Choice = greedy,
) -> list[list[int]]:
    """What the model writes behind each row of token ids, without the stop token that ends it.

    A row that ends leaves the batch, so that long ones cost what they take alone.

    Args:
        rows: prompts, run as one batch.

    Returns:
        Per row at most `max_new_tokens` ids; fewer exactly where the model stopped by itself.
    """
    written: list[list[int]] = [[] for _ in rows]
    reader = _reader(model)(model, rows)
    running = list(range(len(rows)))
    for _ in range(max_new_tokens):
        tokens = choose(reader.logits())
        going = [i for i, token in enumerate(tokens.tolist()) if token not in stop_ids]
        for i in going:
            written[running[i]].append(int(tokens[i]))
        if not going:
            break
        if len(going) < len(running):
            running = [running[i] for i in going]
        reader.follow(tokens, going)
    return written


def own_answers(
    model: PreTrainedModel, prompts: PromptFormat, questions: Sequence[Prompt], max_new_tokens: int, batch: int
) -> list[Encoded]:
    """Questions with what the model greedily says to them, and the end of the turn where it stopped by itself."""
    texts: list[Encoded] = []
    for part in batched(questions, batch):
        rows = [prompts.prompt_ids(question) for question in part]
        for row, said in zip(rows, continuations(model, rows, prompts.stop_ids, max_new_tokens), strict=True):
            ends = (prompts.end_id,) if len(said) < max_new_tokens else ()
            texts.append(Encoded((*row, *said, *ends), len(row)))
    return texts


class _Cached:
    """Rows padded on the left, of which only the last tokens run, behind the model's own cache."""

    def __init__(self, model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> None:
        self.model = model
        self.cache: Any = None
        device, width = model.get_input_embeddings().weight.device, max(map(len, rows))
        self.ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
        self.mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)

    def logits(self) -> Tensor:
        """(B, V) behind each row."""
        out = run(
            self.model,
            self.ids,
            self.mask,
            position_ids=(self.mask.cumsum(dim=1) - 1).clamp_min(0)[:, -self.ids.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = out.past_key_values
        return out.logits[:, -1]

    def follow(self, tokens: Tensor, kept: list[int]) -> None:
        """Append `tokens` (B,), then keep some of the rows."""
        if len(kept) < len(tokens):
            rows = torch.tensor(kept)  # on the CPU: the cache may lie on several devices
            self.cache.batch_select_indices(rows)
            tokens, self.mask = tokens[rows], self.mask[rows]
        self.ids = tokens[:, None]
        self.mask = torch.cat([self.mask, torch.ones_like(self.ids)], dim=1)


class _Shared(_Cached):
    """What all rows begin with runs once; each row gets as much of it as stands in front of its last tokens."""

    def __init__(self, model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> None:
        super().__init__(model, rows)
        shared = _common(rows)
        if len(rows) == 1 or shared < WORTH_SHARING:
            return
        cache = DynamicCache()  # of full layers, also for sliding windows, which the masks then cut
        run(model, self.ids.new_tensor([rows[0][:shared]]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        states = States(0, tuple((layer.keys, layer.values) for layer in cache.layers))
        padding = (self.mask == 0).sum(dim=1, keepdim=True)  # (B, 1)
        columns = (torch.arange(shared, device=padding.device) - padding).clamp_min(0)  # (B, shared)
        each = states.rows(torch.zeros(len(rows), dtype=torch.long)).taken(columns)
        self.cache = each.as_cache(len(rows), states.states[0][0], growing=True)
        self.ids = self.ids[:, shared:]


class _Anew:
    """Rows padded on the right, where no token sees it, run as a whole for every token."""

    def __init__(self, model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> None:
        self.model, self.rows = model, [list(row) for row in rows]

    def logits(self) -> Tensor:
        """(B, V) behind each row."""
        device, width = self.model.get_input_embeddings().weight.device, max(map(len, self.rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in self.rows], device=device)
        logits = run(self.model, ids).logits
        last = torch.tensor([len(row) - 1 for row in self.rows], device=logits.device)
        return logits[torch.arange(len(last), device=logits.device), last]

    def follow(self, tokens: Tensor, kept: list[int]) -> None:
        """Append `tokens` (B,), then keep some of the rows."""
        self.rows = [[*self.rows[i], int(tokens[i])] for i in kept]


def _common(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with, the last one of the shortest not counted: it has to run."""
    length = min(map(len, rows)) - 1
    return next((i for i in range(length) if len({row[i] for row in rows}) > 1), length)


_READERS: WeakKeyDictionary[PreTrainedModel, type[_Cached | _Anew]] = WeakKeyDictionary()


def _reader(model: PreTrainedModel) -> type[_Cached | _Anew]:
    """The quickest way to read on that continues rows as the plain one does; found by trying, once per model."""
    if model not in _READERS:
        _READERS[model] = next((way for way in (_Shared, _Cached) if _continues(way, model)), _Anew)
    return _READERS[model]


def _continues(way: type[_Cached], model: PreTrainedModel) -> bool:
    """Whether rows behind the model's cache are continued as they are without it."""
    begin = range(1, 1 + WORTH_SHARING)
    rows = [[*begin, 4, 5, 6, 7], [*begin, 5], [*begin, 6, 3]]
    added = torch.tensor([7, 8, 9])

    def attempt() -> tuple[Tensor, Tensor, Tensor]:
        found, plain, forgotten = way(model, rows), _Anew(model, rows), _Anew(model, [[7], [9]])
        for reader in (found, plain):
            reader.logits()
            reader.follow(added, [0, 2])
        return found.logits(), plain.logits(), forgotten.logits()

    return carries_context(attempt)
