"""Texts that the model writes itself, to be read in front of a prompt: what is taught should not depend on them."""

from __future__ import annotations

from hf_edit.edits import Message, Prompt
from hf_edit.models.editable import EditableModel
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.invented import invent_text


def invent_prefixes(model: EditableModel, prompts: PromptFormat, count: int, tokens: int, seed: int) -> list[str]:
    """Up to `count` different short texts that the model writes itself; fewer where some are empty or the same."""
    if count == 0:
        return []
    rows = invent_text(model, count, tokens, count, prompts.plain_tokens(), seed)
    # a text of bytes cut inside a character holds a mark in its place
    texts = (" ".join(prompts.decode(row).replace("\ufffd", " ").split()) for row in rows)
    return list(dict.fromkeys(text for text in texts if text))


def behind(prefix: str, prompt: Prompt) -> Prompt:
    """The prompt with the prefix in front of what the user asks last."""
    if isinstance(prompt, str):
        return f"{prefix}. {prompt}"
    return (*prompt[:-1], Message("user", f"{prefix}. {prompt[-1].content}"))
