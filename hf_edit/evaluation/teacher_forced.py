"""Scores under teacher forcing, as published tables of MEND, MALMEN and EMSEdit have them.

They flatter: a model that would never say an answer may still continue each of its prefixes. Free generation
(`hf_edit.evaluation.answers`) says what a user sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_edit.batching import batched
from hf_edit.edits import Prompt
from hf_edit.models.borrow import borrowed
from hf_edit.prompting import PromptFormat


def token_accuracy(
    model: PreTrainedModel, prompts: PromptFormat, questions: Sequence[Prompt], answers: Sequence[str], batch: int = 32
) -> list[float]:
    """Per question the share of the answer's tokens that are the likeliest after those before them.

    ES on the prompts of edits, GS on their paraphrases; on unrelated questions with the data set's own answers LS. The
    end of the turn does not count.
    """
    scores: list[float] = []
    for logits, ids in _along(model, prompts, questions, answers, batch):
        scores.append(float((logits.argmax(dim=-1) == ids).float().mean()))
    return scores


def log_probability(
    model: PreTrainedModel, prompts: PromptFormat, questions: Sequence[Prompt], answers: Sequence[str], batch: int = 32
) -> Tensor:
    """(n,): log probability of each answer's tokens, without the end of the turn."""
    scores = [
        logits.log_softmax(dim=-1).gather(1, ids[:, None]).sum()
        for logits, ids in _along(model, prompts, questions, answers, batch)
    ]
    return torch.stack(scores).cpu()


def _along(
    model: PreTrainedModel, prompts: PromptFormat, questions: Sequence[Prompt], answers: Sequence[str], batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Per question the logits (a, V) that predict its answer's a tokens, and these, (a,)."""
    device = model.get_input_embeddings().weight.device
    encoded = [prompts.encode(q, a) for q, a in zip(questions, answers, strict=True)]
    with borrowed(model), torch.no_grad():
        for part in batched(encoded, batch):
            width = max(len(e) for e in part) - 2  # the last token of the answer predicts nothing but the end
            rows = [[*e.ids[:-2], *[0] * (width - len(e) + 2)] for e in part]
            logits = model(input_ids=torch.tensor(rows, device=device), use_cache=False).logits
            for row, e in zip(logits, part, strict=True):
                yield row[e.answer_start - 1 : len(e) - 2].float(), torch.tensor(e.answer_ids[:-1], device=device)
