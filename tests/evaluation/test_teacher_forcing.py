"""Scores under teacher forcing against one forward pass for each token of each answer."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from hf_edit.prompting import PromptFormat
from tests.evaluation.scored import log_probability, token_accuracy
from tests.snapshots import changed, snapshot
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer


ASKED = [
    ("Who wrote Hamlet?", "William Shakespeare"),
    ("a", "b"),
    ("What is it", "Mount Fuji, in ½ the year 1600, please!"),
    ("Tell me about the quick brown fox", "fox"),
]
QUESTIONS, ANSWERS = [question for question, _ in ASKED], [answer for _, answer in ASKED]


@torch.no_grad()
def plain(model: PreTrainedModel, prompts: PromptFormat, question: str, answer: str) -> tuple[float, float]:
    """Share of right tokens, and log probability, token by token."""
    encoded = prompts.encode(question, answer)
    right, total = [], 0.0
    for token in encoded.answer_ids[:-1]:
        ids = torch.tensor([[*encoded.prompt_ids, *encoded.answer_ids[: len(right)]]])
        logits = model(ids).logits[0, -1]
        right.append(int(logits.argmax()) == token)
        total += float(logits.log_softmax(-1)[token])
    return sum(right) / len(right), total


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize("name", ["chat", "plain", "qa"])
def test_they_are_those_of_each_token_given_those_before_it(name: str, kind: str) -> None:
    """Whatever runs together, on tokenizers that merge over the border and on those that mark the beginning."""
    model, prompts = tiny_model(), PromptFormat(name, tiny_tokenizer(kind))
    shares, sums = zip(*(plain(model, prompts, *asked) for asked in ASKED), strict=True)
    for batch in (1, 3, 32):
        assert token_accuracy(model, prompts, QUESTIONS, ANSWERS, batch) == pytest.approx(shares)
        assert log_probability(model, prompts, QUESTIONS, ANSWERS, batch).tolist() == pytest.approx(sums, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str) -> None:
    model, prompts = tiny_model(family), PromptFormat("chat", tiny_tokenizer())
    expected = [plain(model, prompts, *asked)[1] for asked in ASKED]
    assert log_probability(model, prompts, QUESTIONS, ANSWERS, batch=3).tolist() == pytest.approx(expected, rel=1e-4)


def test_a_likelier_answer_has_the_higher_score_and_both_are_below_0() -> None:
    model, prompts = tiny_model(), PromptFormat("chat", tiny_tokenizer())
    ids = list(prompts.prompt_ids("Who?"))
    with torch.no_grad():
        order = model(torch.tensor([ids])).logits[0, -1].argsort(descending=True).tolist()
    words = [prompts.tokenizer.decode([token]) for token in order]
    single = [w for w in words if w.strip().isalpha() and len(prompts.encode("Who?", w).answer_ids) == 2]
    scores = log_probability(model, prompts, ["Who?"] * 2, [single[0], single[-1]])
    assert scores[1] < scores[0] < 0


def test_the_model_is_left_alone() -> None:
    model, prompts = tiny_model("gpt2").train(), PromptFormat("chat", tiny_tokenizer())
    before = snapshot(model)
    token_accuracy(model, prompts, QUESTIONS, ANSWERS)
    scores = log_probability(model, prompts, QUESTIONS, ANSWERS)
    assert changed(before, snapshot(model)) == [] and not scores.requires_grad
    assert torch.equal(scores, log_probability(model.eval(), prompts, QUESTIONS, ANSWERS))  # no dropout
