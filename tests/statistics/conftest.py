"""A tiny model, its chat format, a text, and a cache of their own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_edit.models.editable import EditableModel
from hf_edit.prompting import PromptFormat
from tests.tiny import CORPUS, tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_EDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def view() -> EditableModel:
    return EditableModel.of(tiny_model())


@pytest.fixture
def chat() -> PromptFormat:
    return PromptFormat.of("chat", tiny_tokenizer())


@pytest.fixture
def plain() -> PromptFormat:
    return PromptFormat.of("plain", tiny_tokenizer())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(CORPUS) * 2, encoding="utf-8")
    return path
