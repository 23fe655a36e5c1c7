"""The base's first words, and whether they are still said."""

from __future__ import annotations

import pytest

from hf_edit.evaluation.answers import greedy_answers
from hf_edit.evaluation.openings import openings, still_said
from hf_edit.prompting import PromptFormat
from tests.evaluation.parrot import parrot
from tests.tiny import tiny_model, tiny_tokenizer


QUESTIONS = ["Where", "Hamlet", "7"]
SAID = [("Where", "is the dog"), ("Hamlet", "x y"), ("7", "b c d e f g h i j k")]


@pytest.fixture
def plain() -> PromptFormat:
    return PromptFormat.of("plain", tiny_tokenizer())


def test_openings_are_the_first_greedy_tokens_and_the_end_where_there_is_one(plain: PromptFormat) -> None:
    texts = openings(parrot(plain, SAID), plain, QUESTIONS, tokens=6, batch=2)
    assert [text.prompt_ids for text in texts] == [plain.prompt_ids(question) for question in QUESTIONS]
    assert [plain.decode(text.answer_ids) for text in texts] == ["is the dog", "x y", "b c d e f g"]
    assert [text.answer_ids[-1] == plain.end_id for text in texts] == [True, True, False]


def test_an_opening_is_kept_where_greedy_decoding_still_gives_it(plain: PromptFormat) -> None:
    texts = openings(parrot(plain, SAID), plain, QUESTIONS, tokens=6)
    assert still_said(parrot(plain, SAID), plain, texts) == [True, True, True]
    # another word behind the sixth; a word more before the end; another first word
    moved = [("Where", "wrote"), ("Hamlet", "x y z"), ("7", "b c d e f g j")]
    assert still_said(parrot(plain, moved), plain, texts, batch=2) == [False, False, True]


@pytest.mark.parametrize("name", ["plain", "chat"])
def test_one_forward_pass_agrees_with_generating(name: str) -> None:
    prompts = PromptFormat.of(name, tiny_tokenizer())
    base, other = tiny_model(), tiny_model(seed=3)
    for parameter, moved in zip(base.parameters(), other.parameters(), strict=True):
        moved.data = parameter.data + 0.03 * (moved.data - parameter.data)
    questions = [f"Who is {letter}?" for letter in "abcdefghijkl"]
    texts = openings(base, prompts, questions, tokens=3)
    before, after = (greedy_answers(model, prompts, questions, 3) for model in (base, other))
    same = [a == b for a, b in zip(before, after, strict=True)]
    assert still_said(other, prompts, texts, batch=5) == same
    assert 0 < sum(same) < len(same)
