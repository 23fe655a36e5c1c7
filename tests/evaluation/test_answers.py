"""Greedy answers against a plain token-by-token loop."""

from __future__ import annotations

import pytest
import torch

from hf_edit.errors import ConfigError
from hf_edit.evaluation.answers import greedy_answers
from hf_edit.prompting import PromptFormat
from tests.snapshots import changed, snapshot
from tests.tiny import tiny_model, tiny_tokenizer


QUESTIONS = [
    "Who?",
    "Question: what is the boiling point of water, and who wrote the play Hamlet around the year 1600?",
    "The quick brown fox",
    "a b c",
    "Tell me about Mount Fuji, please!",
]


def one_by_one(model: torch.nn.Module, prompts: PromptFormat, question: str, most: int) -> str:
    """No cache, no padding: the whole forward for every token."""
    ids = list(prompts.prompt_ids(question))
    answer: list[int] = []
    with torch.no_grad():
        while len(answer) < most:
            token = int(model(input_ids=torch.tensor([ids + answer])).logits[0, -1].argmax())
            if token in prompts.stop_ids:
                break
            answer.append(token)
    return prompts.decode(answer)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "opt"])
def test_they_are_the_likeliest_tokens(family: str, batch: int) -> None:
    """In batches with padding on the left as well, also beyond a sliding window."""
    model = tiny_model(family, dtype=torch.float64)
    prompts = PromptFormat.of("plain", tiny_tokenizer())
    expected = [one_by_one(model, prompts, question, 20) for question in QUESTIONS]
    assert greedy_answers(model, prompts, QUESTIONS, max_new_tokens=20, batch=batch) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("format", ["plain", "chat"])
def test_drafts_change_no_answer(format: str) -> None:
    model, prompts = tiny_model(dtype=torch.float64), PromptFormat.of(format, tiny_tokenizer())
    said = greedy_answers(model, prompts, QUESTIONS, max_new_tokens=20)
    for drafts in (said, ["", *said[1:3], "The quick brown fox", said[4][:9] + "?"]):
        assert greedy_answers(model, prompts, QUESTIONS, max_new_tokens=20, drafts=drafts) == said
    with pytest.raises(ValueError, match="zip"):
        greedy_answers(model, prompts, QUESTIONS, drafts=said[1:])


def test_an_answer_ends_where_the_model_ends_it() -> None:
    """A head that says one token, then the end of the turn."""
    model = tiny_model("gpt2", dtype=torch.float64)
    prompts = PromptFormat.of("plain", tiny_tokenizer())
    word = prompts.text_ids("a")[0]
    model.lm_head = torch.nn.Linear(32, 512, dtype=torch.float64)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.lm_head.bias.data = torch.zeros(512, dtype=torch.float64)
    model.lm_head.bias.data[word] = 1.0
    assert greedy_answers(model, prompts, ["Who?"], max_new_tokens=3) == ["aaa"]
    model.lm_head.bias.data[prompts.end_id] = 2.0
    assert greedy_answers(model, prompts, ["Who?"], max_new_tokens=3) == [""]


def test_the_models_own_generation_settings_do_not_apply() -> None:
    model, prompts = tiny_model(), PromptFormat.of("chat", tiny_tokenizer())
    plain = greedy_answers(model, prompts, QUESTIONS, max_new_tokens=20)
    settings = model.generation_config
    settings.do_sample, settings.temperature, settings.top_k = True, 5.0, 3
    settings.repetition_penalty, settings.no_repeat_ngram_size, settings.num_beams = 5.0, 1, 3
    settings.suppress_tokens, settings.min_length = list(range(6, 300)), 100
    assert greedy_answers(model, prompts, QUESTIONS, max_new_tokens=20) == plain


def test_the_caller_notices_nothing() -> None:
    model, prompts = tiny_model("gpt2").train(), PromptFormat.of("chat", tiny_tokenizer())
    before = snapshot(model)
    with torch.inference_mode():
        first = greedy_answers(model, prompts, QUESTIONS[:2], max_new_tokens=4)
    assert changed(before, snapshot(model)) == []
    assert first == greedy_answers(model.eval(), prompts, QUESTIONS[:2], max_new_tokens=4)  # no dropout


def test_no_questions() -> None:
    assert greedy_answers(tiny_model(), PromptFormat.of("chat", tiny_tokenizer()), []) == []


def test_answers_end_where_the_context_does() -> None:
    model, tokenizer = tiny_model("gpt2", dtype=torch.float64), tiny_tokenizer()
    context = model.config.max_position_embeddings
    prompts = PromptFormat.of("plain", tokenizer)
    long = "word " * context
    while len(prompts.prompt_ids(long)) > context - 3:
        long = long[:-5]
    greedy_answers(model, prompts, [long, "Who?"], max_new_tokens=20)
    with pytest.raises(ConfigError, match=f"context holds {context}"):
        greedy_answers(model, prompts, [long * 2], max_new_tokens=20)
