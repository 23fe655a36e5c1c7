"""Drift and perplexity against direct computations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_edit.errors import ConfigError
from hf_edit.evaluation.answers import greedy_answers
from hf_edit.evaluation.drift import drift, perplexity, reference
from hf_edit.prompting import Encoded, PromptFormat
from tests.snapshots import changed, snapshot
from tests.tiny import VOCAB, tiny_model, tiny_tokenizer


QUESTIONS = ["Who?", "Tell me about Mount Fuji, please!", "The quick brown fox"]


@pytest.fixture
def chat() -> PromptFormat:
    return PromptFormat.of("chat", tiny_tokenizer())


def moved_model() -> PreTrainedModel:
    model = tiny_model()
    torch.manual_seed(1)
    for block in model.model.layers:
        block.mlp.down_proj.weight.data += 0.05 * torch.randn_like(block.mlp.down_proj.weight)
    return model


def probabilities(model: PreTrainedModel, text: Encoded) -> list[Tensor]:
    """For each answer token its distribution, from the tokens before it alone, float64."""
    with torch.no_grad():
        return [
            model(input_ids=torch.tensor([text.ids[:at]])).logits[0, -1].double().softmax(-1)
            for at in range(text.answer_start, len(text))
        ]


def test_a_model_has_not_moved_from_itself(chat: PromptFormat) -> None:
    model = tiny_model()
    found = drift(model, reference(model, chat, QUESTIONS, max_new_tokens=10))
    assert (found.kl, found.agreement, found.n) == (0, 1, 3)


def test_kl_and_agreement(chat: PromptFormat) -> None:
    base, model = tiny_model(), moved_model()
    texts = [chat.encode(q, a) for q, a in zip(QUESTIONS, greedy_answers(base, chat, QUESTIONS, 10), strict=True)]
    before = [p for text in texts for p in probabilities(base, text)]
    after = [p for text in texts for p in probabilities(model, text)]
    kl = sum(float((p * (p / q).log()).sum()) for p, q in zip(before, after, strict=True)) / len(before)
    same = sum(int(p.argmax() == q.argmax()) for p, q in zip(before, after, strict=True)) / len(before)
    found = drift(model, reference(base, chat, QUESTIONS, max_new_tokens=10))
    assert found.kl == pytest.approx(kl, rel=1e-4) and kl > 0.01
    assert found.agreement == pytest.approx(same) and 0 < same < 1


def test_the_reference_is_what_the_base_answers(chat: PromptFormat) -> None:
    base = tiny_model()
    found = reference(base, chat, QUESTIONS, max_new_tokens=7)
    assert list(found.questions) == QUESTIONS
    assert list(found.answers) == greedy_answers(base, chat, QUESTIONS, 7)
    for text, question, answer, log_probs in zip(found.texts, QUESTIONS, found.answers, found.log_probs, strict=True):
        assert text == chat.encode(question, answer)
        assert log_probs.shape == (len(text.answer_ids), VOCAB)


def test_questions_without_an_answer_are_left_out(chat: PromptFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_edit.evaluation.drift.greedy_answers", lambda *_: ["one", "", "two"])
    model = tiny_model()
    found = reference(model, chat, QUESTIONS)
    assert (list(found.questions), list(found.answers)) == ([QUESTIONS[0], QUESTIONS[2]], ["one", "two"])
    assert drift(model, found).n == 2
    monkeypatch.setattr("hf_edit.evaluation.drift.greedy_answers", lambda *_: [""] * 3)
    with pytest.raises(ConfigError, match="none of 3 questions"):
        reference(model, chat, QUESTIONS)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_perplexity(batch: int) -> None:
    model = tiny_model(dtype=torch.float64)
    ids = [(7 * i * i + 3) % VOCAB for i in range(53)]  # five sequences of ten, three left out
    losses = []
    with torch.no_grad():
        for start in range(0, 50, 10):
            for at in range(start + 1, start + 10):
                logits = model(input_ids=torch.tensor([ids[start:at]])).logits[0, -1]
                losses.append(-float(logits.log_softmax(-1)[ids[at]]))
    assert perplexity(model, ids, length=10, batch=batch) == pytest.approx(math.exp(sum(losses) / 45), rel=1e-5)


def test_a_text_too_short_for_perplexity() -> None:
    with pytest.raises(ConfigError, match="9 tokens .* 10"):
        perplexity(tiny_model(), range(9), length=10)


def test_the_caller_notices_nothing(chat: PromptFormat) -> None:
    model = tiny_model("gpt2").train()
    before = snapshot(model)
    drift(model, reference(model, chat, QUESTIONS[:1], max_new_tokens=4))
    perplexity(model, range(40), length=10)
    assert changed(before, snapshot(model)) == []
