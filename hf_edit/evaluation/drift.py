"""How far an edited model has moved where it should not have: KL on fixed text, changed answers, perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_edit.edits import Prompt
from hf_edit.errors import ConfigError
from hf_edit.evaluation.answers import greedy_answers
from hf_edit.models.borrow import borrowed
from hf_edit.prompting import Encoded, PromptFormat


SEQUENCE = 512
"""Tokens of running text that are run together."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What the base said: questions with its own greedy answers, and its log probabilities along them.

    Args:
        questions, answers: verbatim.
        texts: question and answer as token ids.
        log_probs: per text (n, V), of each answer token's distribution.
    """

    questions: Sequence[Prompt]
    answers: Sequence[str]
    texts: Sequence[Encoded]
    log_probs: Sequence[Tensor]


@dataclass(frozen=True)
class Drift:
    """Distance of a model from a reference.

    Args:
        kl: mean KL(base || model) per answer token, nats.
        agreement: share of answer tokens with the same likeliest token.
        n: questions.
    """

    kl: float
    agreement: float
    n: int


def reference(
    model: PreTrainedModel, prompts: PromptFormat, questions: Sequence[Prompt], max_new_tokens: int = 64
) -> Reference:
    """Ask the unedited model; answers are cut at `max_new_tokens`, and questions without an answer left out.

    Raises:
        ConfigError: the model answers none of the questions.
    """
    answers = greedy_answers(model, prompts, questions, max_new_tokens)
    asked = [(q, a) for q, a in zip(questions, answers, strict=True) if a]
    if not asked:
        raise ConfigError(
            f"The model answers none of {len(questions)} questions.", "Ask others, or in another prompt format."
        )
    texts = [prompts.encode(q, a) for q, a in asked]
    return Reference([q for q, _ in asked], [a for _, a in asked], texts, [log_probs(model, t) for t in texts])


def drift(model: PreTrainedModel, base: Reference) -> Drift:
    """How far `model`, the same tokenizer's, has moved from the reference."""
    divergence, same, tokens = 0.0, 0, 0
    for text, before in zip(base.texts, base.log_probs, strict=True):
        after = log_probs(model, text)
        divergence += float((before.exp() * (before - after)).sum())
        same += int((before.argmax(-1) == after.argmax(-1)).sum())
        tokens += before.shape[0]
    return Drift(divergence / tokens, same / tokens, len(base.texts))


def perplexity(model: PreTrainedModel, ids: Sequence[int], length: int = SEQUENCE, batch: int = 4) -> float:
    """Perplexity of running text, cut into sequences of `length` tokens; the rest is left out.

    Raises:
        ConfigError: the text is shorter than one sequence.
    """
    return math.exp(fmean(sequence_losses(model, ids, length, batch)))


def sequence_losses(model: PreTrainedModel, ids: Sequence[int], length: int = SEQUENCE, batch: int = 4) -> list[float]:
    """Per sequence of `length` tokens the mean negative log likelihood of all but its first; arguments as above."""
    if len(ids) < length:
        raise ConfigError(f"A text of {len(ids)} tokens holds no sequence of {length}.", "Give a longer one.")
    rows = torch.tensor(ids[: len(ids) // length * length]).reshape(-1, length)
    device = model.get_input_embeddings().weight.device
    losses: list[float] = []
    with borrowed(model), torch.no_grad():
        for part in rows.to(device).split(batch):
            logits = model(input_ids=part, use_cache=False).logits[:, :-1].float()
            every = F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none")
            losses += every.view(len(part), -1).double().mean(dim=1).tolist()
    return losses


def log_probs(model: PreTrainedModel, text: Encoded) -> Tensor:
    """(n, V): the distribution of each answer token given the tokens before it."""
    device = model.get_input_embeddings().weight.device
    with borrowed(model), torch.no_grad():
        logits = model(input_ids=torch.tensor([text.ids], device=device), use_cache=False).logits[0]
    return logits[text.answer_start - 1 : -1].float().log_softmax(-1)
