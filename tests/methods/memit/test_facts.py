from __future__ import annotations

import pytest

from hf_edit.edits import Edit, Message
from hf_edit.methods.contexts import invent_prefixes
from hf_edit.methods.memit.facts import names_subject, prepared
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.prompting import PromptFormat
from tests.tiny import tiny_model, tiny_tokenizer


PREFIXES = ["The quick fox", "Who wrote it"]
EDIT = Edit("The capital of France is", "Berlin", subject=" France ")


def formats() -> list[PromptFormat]:
    return [PromptFormat.of(name, tiny_tokenizer(kind)) for name in ("chat", "plain", "qa") for kind in KINDS]


KINDS = ("byte_level", "sentencepiece")


@pytest.mark.parametrize("prompts", formats(), ids=lambda f: f.name)
def test_the_key_is_the_subjects_last_token_in_every_text(prompts: PromptFormat) -> None:
    fact = prepared(EDIT, prompts, PREFIXES, max_length=None)
    assert len(fact.texts) == 3
    assert fact.essence is not None
    for text in (*fact.texts, fact.essence):
        upto, before = (prompts.tokenizer.decode(list(text.encoded.ids[:end])) for end in (text.key + 1, text.key))
        assert upto.endswith("France") and not before.endswith("France")
        assert text.key < text.encoded.answer_start
    assert fact.texts[0].encoded == prompts.encode(EDIT.prompt, EDIT.target)
    assert fact.texts[1].encoded == prompts.encode("The quick fox. The capital of France is", "Berlin")
    assert fact.essence.encoded.ids == prompts.prompt_ids("France is a")
    assert not fact.essence.encoded.answer_ids


def test_prefixes_stand_in_front_of_what_the_user_asks_last() -> None:
    prompts = PromptFormat.of("chat", tiny_tokenizer())
    chat = (Message("system", "Be brief."), Message("user", "Who wrote Hamlet?"))
    fact = prepared(Edit(chat, "Nobody", subject="Hamlet"), prompts, PREFIXES[:1], max_length=None)
    behind = (chat[0], Message("user", "The quick fox. Who wrote Hamlet?"))
    assert fact.texts[1].encoded == prompts.encode(behind, "Nobody")


@pytest.mark.parametrize("subject", [None, "Germany"])
def test_without_a_subject_the_key_is_the_prompts_last_token(subject: str | None) -> None:
    prompts = PromptFormat.of("chat", tiny_tokenizer())
    edit = Edit(EDIT.prompt, "Berlin", subject=subject)
    assert names_subject(EDIT, prompts) and not names_subject(edit, prompts)
    fact = prepared(edit, prompts, PREFIXES, max_length=None)
    assert fact.essence is None
    assert [text.key for text in fact.texts] == [text.encoded.answer_start - 1 for text in fact.texts]


def test_texts_that_exceed_the_context_are_left_out() -> None:
    prompts = PromptFormat.of("plain", tiny_tokenizer())
    lengths = [len(text.encoded) for text in prepared(EDIT, prompts, ["a", "a b c d e f"], None).texts]
    fact = prepared(EDIT, prompts, ["a", "a b c d e f"], max_length=lengths[1])
    assert [len(text.encoded) for text in fact.texts] == lengths[:2]
    assert prepared(EDIT, prompts, ["a"], max_length=len(prompts.prompt_ids("France is a")) - 1).essence is None


@pytest.mark.parametrize(("prefixes", "shares"), [([], [1.0]), (PREFIXES, [0.5, 0.25, 0.25])])
def test_the_prompt_counts_as_much_as_all_prefixes(prefixes: list[str], shares: list[float]) -> None:
    prompts = PromptFormat.of("plain", tiny_tokenizer())
    assert prepared(EDIT, prompts, prefixes, max_length=None).shares() == shares


def test_the_model_writes_the_prefixes_from_the_seed() -> None:
    model = tiny_model()
    view, prompts = EditableModel.of(model), PromptFormat.of("plain", tiny_tokenizer())
    with borrowed(model):
        first, again, other = (invent_prefixes(view, prompts, 3, 6, seed) for seed in (0, 0, 1))
        none = invent_prefixes(view, prompts, 0, 6, 0)
    assert first == again != other
    assert len(first) == 3 and none == []
    assert all(text == text.strip() and "\ufffd" not in text and "\n" not in text for text in first)
