"""One forward pass along given answers, against generating them and against scoring them one by one."""

from __future__ import annotations

import pytest
import torch

from hf_edit.evaluation.answers import greedy_answers
from hf_edit.evaluation.drift import log_probs
from hf_edit.evaluation.following import answer_logits, followed, likeliest
from hf_edit.prompting import Encoded, PromptFormat
from tests.evaluation.parrot import parrot
from tests.snapshots import changed, snapshot
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer


ASKED = [("Who?", "Port Amber"), ("Tell me about Mount Fuji, please!", "a"), ("The quick", "brown fox jumps over 9")]


@pytest.fixture
def plain() -> PromptFormat:
    return PromptFormat.of("plain", tiny_tokenizer())


@pytest.fixture
def chat() -> PromptFormat:
    return PromptFormat.of("chat", tiny_tokenizer())


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_each_text_alone(family: str, chat: PromptFormat) -> None:
    model = tiny_model(family)
    texts = [chat.encode(*pair) for pair in ASKED]
    found = {i: (logits, ids) for i, logits, ids in answer_logits(model, texts, batch=2)}
    for i, text in enumerate(texts):
        logits, ids = found[i]
        assert tuple(ids.tolist()) == text.answer_ids
        torch.testing.assert_close(logits.log_softmax(-1), log_probs(model, text), atol=1e-4, rtol=1e-4)


def test_exact_is_what_greedy_generation_says(plain: PromptFormat) -> None:
    model = parrot(plain, [("Where", "is the dog"), ("7", "x y"), ("Hamlet", "wrote jumps")])
    asked = [("Where", "is the dog"), ("Where", "is the"), ("Where", "is the dog it"), ("7", "x y"), ("7", "x z")]
    found = followed(model, plain, asked)
    said = greedy_answers(model, plain, [question for question, _ in asked], max_new_tokens=9)
    assert [one.exact for one in found] == [s == a for s, (_, a) in zip(said, asked, strict=True)]
    assert [one.exact for one in found] == [True, False, False, True, False]
    # the model would go on, or stops too early: every token is right all the same, or all but the last
    assert found[1].accuracy == 1 and 0.5 < found[2].accuracy < 1 and found[4].accuracy == 0.5


def test_any_token_that_ends_a_turn_ends_it() -> None:
    logits = torch.eye(6)[[0, 1, 2, 5]]
    assert likeliest(logits, torch.tensor([0, 2, 5, 2]), {2, 5}).tolist() == [True, False, True, True]
    assert likeliest(logits, torch.tensor([0, 2, 5, 2]), {5}).tolist() == [True, False, False, False]


def test_a_prompt_and_an_answer_of_one_token(plain: PromptFormat) -> None:
    model = tiny_model()
    ((_, logits, ids),) = answer_logits(model, [Encoded((7, 8), 1)])
    assert ids.tolist() == [8]
    torch.testing.assert_close(logits, model(torch.tensor([[7]])).logits[0].detach(), atol=1e-5, rtol=1e-5)


def test_the_model_is_left_alone(chat: PromptFormat) -> None:
    model = tiny_model().train()
    before = snapshot(model)
    followed(model, chat, ASKED)
    assert changed(before, snapshot(model)) == []
