"""What a model makes of given answers, in one forward pass: nothing is generated.

Asked greedily, a model says an answer token for token and stops by itself exactly where each of the answer's tokens is
the likeliest behind those before it, and a token that ends the turn is the likeliest behind the last. So exact match
under free greedy generation with natural stop costs one forward pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_edit.batching import batched
from hf_edit.edits import Prompt
from hf_edit.models.borrow import borrowed
from hf_edit.prompting import Encoded, PromptFormat


@dataclass(frozen=True)
class Followed:
    """A model along one answer.

    Args:
        accuracy: share of the answer's tokens, without the end of the turn, that are the likeliest after those before
            them: teacher forcing, which flatters.
        exact: greedy generation says this very answer and stops.
        log_probability: of the answer's tokens, without the end of the turn, nats.
    """

    accuracy: float
    exact: bool
    log_probability: float


def followed(
    model: PreTrainedModel, prompts: PromptFormat, asked: Sequence[tuple[Prompt, str]], batch: int = 32
) -> list[Followed]:
    """Questions with answers, in order."""
    texts = [prompts.encode(question, answer) for question, answer in asked]
    found: dict[int, Followed] = {}
    for i, logits, ids in answer_logits(model, texts, batch):
        hits = likeliest(logits, ids, prompts.stop_ids)
        log_probs = logits[:-1].log_softmax(dim=-1).gather(1, ids[:-1, None])
        found[i] = Followed(float(hits[:-1].float().mean()), bool(hits.all()), float(log_probs.sum()))
    return [found[i] for i in range(len(texts))]


def likeliest(logits: Tensor, ids: Tensor, stop_ids: Collection[int]) -> Tensor:
    """(a,): whether each token is the one that greedy decoding says there; all that end a turn count as one.

    Args:
        logits: (a, V), that predict the tokens.
        ids: (a,)
    """
    said = logits.argmax(dim=-1)
    stops = torch.tensor(sorted(stop_ids), device=ids.device)
    return (said == ids) | (torch.isin(said, stops) & torch.isin(ids, stops))


def answer_logits(
    model: PreTrainedModel, texts: Sequence[Encoded], batch: int = 32
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Per text its index, the logits (a, V) that predict its answer's a tokens, and these, (a,), fp32.

    Texts of about one length are run together, so they come in another order than they are given; the head runs from
    the first answer of a batch on.
    """
    device = model.get_input_embeddings().weight.device
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), texts[i].answer_start))
    for part in batched(order, batch):
        chosen = [texts[i] for i in part]
        width = max(len(text) for text in chosen) - 1  # the last token predicts nothing that is asked for
        first = min(text.answer_start for text in chosen) - 1
        rows = [[*text.ids[:-1], *[0] * (width - len(text) + 1)] for text in chosen]
        with borrowed(model), torch.no_grad():
            ids = torch.tensor(rows, device=device)
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=width - first).logits
        for i, row, text in zip(part, logits, chosen, strict=True):
            along = row[text.answer_start - 1 - first : len(text) - 1 - first].float()
            yield i, along, torch.tensor(text.answer_ids, device=along.device)
