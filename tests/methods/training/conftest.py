"""A tiny model, its chat format and a few texts."""

from __future__ import annotations

import pytest

from hf_edit.models.editable import EditableModel
from hf_edit.prompting import Encoded, PromptFormat
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def view() -> EditableModel:
    model = tiny_model()
    model.requires_grad_(False)
    return EditableModel.of(model)


@pytest.fixture
def chat() -> PromptFormat:
    return PromptFormat.of("chat", tiny_tokenizer())


@pytest.fixture
def talks(chat: PromptFormat) -> list[Encoded]:
    """Of different lengths; the answers do not end their turn, and one has a single token."""
    asked = [("Where is the dog?", "Over the lazy"), ("Tell me", "a"), ("Why?", "please"), ("Who?", "b c d e f g h")]
    texts = [chat.encode(*text) for text in asked]
    return [Encoded(text.ids[:-1], text.answer_start) for text in texts]
