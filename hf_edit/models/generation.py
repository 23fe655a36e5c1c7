"""Letting a model write, by one loop over its own forward: nothing of its generation settings takes part."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from hf_edit.batching import batched
from hf_edit.edits import Prompt
from hf_edit.models.forward import context_length, room_behind, run
from hf_edit.models.prefix import States
from hf_edit.models.trial import carries_context
from hf_edit.prompting import Encoded, PromptFormat


Choice = Callable[[Tensor], Tensor]
"""Chooses the next token of each row: logits (B, V) -> (B,)."""
WORTH_SHARING = 8
"""Fewest tokens that all rows must begin with, as under one system prompt, for these to run once."""
MARGINS = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 0.1}
MARGIN = 0.5
"""By how much the likeliest token's logit exceeds the next one's where it is no matter of rounding whether a text runs
as a whole or token by token; `MARGIN` is that of bf16 and all that is coarser. Norms in fp32 bound float64's."""
TOKENS_AT_ONCE = 1024
"""Of drafts with what stands before them, unless one alone is longer: each of a draft's tokens has all logits."""
NEAR = 4
"""Among how many of a draft's next tokens one that was written is looked for."""
TRIES = 4
"""How often the rest of a draft is run."""
PAYS = 0.25
"""Share of what was run that must have been right for a draft with a mistake to be run again: in batches on a CPU, a
token that is written alone costs about four that are run together."""


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
    return _written(model, rows, stop_ids, [max_new_tokens] * len(rows), choose)


@torch.no_grad()
def drafted(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    drafts: Sequence[Sequence[int]],
    stop_ids: Container[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """What `continuations` writes greedily, in less time where drafts foretell it.

    One forward pass over a draft says which of its first tokens would be written, and what in place of the next one;
    another pass says it of the rest. Near ties, and what no draft foretells, are decided as in `continuations`.

    Args:
        rows: prompts, written to as one batch.
        drafts: per row what may be written behind it, with or without a stop token; empty for no idea.
    """
    written: list[list[int]] = [[] for _ in rows]
    rests = {i: tuple(takewhile(lambda token: token not in stop_ids, draft)) for i, draft in enumerate(drafts)}
    ended: set[int] = set()
    for _ in range(TRIES):
        texts = {
            i: Encoded((*rows[i], *written[i], *ahead), len(rows[i]) + len(written[i]))
            for i, rest in rests.items()
            if (ahead := rest[: max(0, max_new_tokens - len(written[i]) - 1)])  # the logits behind say the last token
        }
        if not texts:
            break
        for i, (right, token) in zip(texts, _verified(model, list(texts.values())), strict=True):
            written[i] += rests[i][:right]
            rest, rests[i] = rests[i][right:], ()
            if token in stop_ids:
                ended.add(i)
                continue
            written[i].append(token)
            if rest[:1] == (token,) or right >= PAYS * len(texts[i]):
                rests[i] = _behind(token, rest)
    left = [i for i, ids in enumerate(written) if i not in ended and len(ids) < max_new_tokens]
    if left:
        limits = [max_new_tokens - len(written[i]) for i in left]
        more = _written(model, [[*rows[i], *written[i]] for i in left], stop_ids, limits, greedy)
        for i, ids in zip(left, more, strict=True):
            written[i] += ids
    return written


def own_answers(
    model: PreTrainedModel, prompts: PromptFormat, questions: Sequence[Prompt], max_new_tokens: int, batch: int
) -> list[Encoded]:
    """Questions with what the model greedily says to them, and the end of the turn where it stopped by itself.

    Answers are shorter where the model's context holds no more.
    """
    texts: list[Encoded] = []
    context = context_length(model)
    for part in batched(questions, batch):
        rows = [prompts.prompt_ids(question) for question in part]
        most = max(1, room_behind(rows, max_new_tokens, context))
        for row, said in zip(rows, continuations(model, rows, prompts.stop_ids, most), strict=True):
            ends = (prompts.end_id,) if len(said) < most else ()
            texts.append(Encoded((*row, *said, *ends), len(row)))
    return texts


def _written(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    stop_ids: Container[int],
    limits: Sequence[int],
    choose: Choice,
) -> list[list[int]]:
    """`continuations`, with a limit for each row."""
    written: list[list[int]] = [[] for _ in rows]
    reader = _reader(model)(model, rows)
    running = list(range(len(rows)))
    for count in range(1, max(limits) + 1):
        tokens = choose(reader.logits())
        said = [i for i, token in enumerate(tokens.tolist()) if token not in stop_ids]
        for i in said:
            written[running[i]].append(int(tokens[i]))
        going = [i for i in said if count < limits[running[i]]]
        if not going:
            break
        if len(going) < len(running):
            running = [running[i] for i in going]
        reader.follow(tokens, going)
    return written


def _verified(model: PreTrainedModel, texts: Sequence[Encoded]) -> list[tuple[int, int]]:
    """Per text how many of its answer's tokens greedy decoding writes, and the token that it writes behind these."""
    said = _foretold(model, texts)
    right = [_common([ids, text.answer_ids]) for ids, text in zip(said, texts, strict=True)]
    tied = [i for i, ids in enumerate(said) if right[i] == len(ids)]
    if tied:
        rows = [texts[i].ids[: texts[i].answer_start + right[i]] for i in tied]
        for i, ids in zip(tied, _written(model, rows, (), [1] * len(tied), greedy), strict=True):
            said[i] += ids
    return [(count, ids[count]) for count, ids in zip(right, said, strict=True)]


def _foretold(model: PreTrainedModel, texts: Sequence[Encoded]) -> list[list[int]]:
    """Per text the likeliest token behind its prompt and behind each token of its answer, up to the first near tie."""
    margin, device = MARGINS.get(model.dtype, MARGIN), model.get_input_embeddings().weight.device
    found: dict[int, list[int]] = {}
    for part in _parts([len(text) for text in texts]):
        width, first = max(len(texts[i]) for i in part), min(texts[i].answer_start for i in part) - 1
        # padded on the right, where no token sees it
        ids = torch.tensor([[*texts[i].ids, *[0] * (width - len(texts[i]))] for i in part], device=device)
        logits = run(model, ids, logits_to_keep=width - first).logits[:, first - width :]
        values, tokens = logits.topk(2)
        sure = (values[..., 0] - values[..., 1]).ge(margin).tolist()
        for i, row, certain in zip(part, tokens[..., 0].tolist(), sure, strict=True):
            places = range(texts[i].answer_start - 1 - first, len(texts[i]) - first)
            found[i] = [row[place] for place in takewhile(certain.__getitem__, places)]
    return [found[i] for i in range(len(texts))]


def _parts(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of texts to run together: of about one length, and not too many tokens with their padding."""
    part: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if part and (len(part) + 1) * lengths[i] > TOKENS_AT_ONCE:
            yield part
            part = []
        part.append(i)
    yield part


def _behind(token: int, rest: tuple[int, ...]) -> tuple[int, ...]:
    """What is left of a draft behind a token: all but the one in its place, unless the draft has the token soon."""
    return rest[rest.index(token) + 1 if token in rest[:NEAR] else 1 :]


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
        shared = min(_common(rows), min(map(len, rows)) - 1)  # the last token of the shortest row has to run
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
    """How many tokens all rows begin with."""
    length = min(map(len, rows))
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
