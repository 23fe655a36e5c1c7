"""Letting a model write, by one loop over its own forward: nothing of its generation settings takes part."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel


Choice = Callable[[Tensor], Tensor]
"""Chooses the next token of each row: logits (B, V) -> (B,)."""


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
    device = model.get_input_embeddings().weight.device
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    written: list[list[int]] = [[] for _ in rows]
    running, cache = list(range(len(rows))), None
    for _ in range(max_new_tokens):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp_min(0)[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens, cache = choose(out.logits[:, -1]), out.past_key_values
        going = [i for i, token in enumerate(tokens.tolist()) if token not in stop_ids]
        for i in going:
            written[running[i]].append(int(tokens[i]))
        if not going:
            break
        if len(going) < len(running):
            kept = torch.tensor(going)  # on the CPU: the cache may lie on several devices
            cache.batch_select_indices(kept)
            tokens, mask, running = tokens[kept], mask[kept], [running[i] for i in going]
        ids = tokens[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return written
