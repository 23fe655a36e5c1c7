"""A short fact as it is taught: its prompt alone and behind other text, with the token at which its key sits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_edit.edits import Edit, Prompt
from hf_edit.methods.contexts import behind
from hf_edit.prompting import Encoded, PromptFormat


@dataclass(frozen=True)
class KeyedText:
    """A prompt and its answer, and the position of the key in the prompt."""

    encoded: Encoded
    key: int


@dataclass(frozen=True)
class Fact:
    """One edit, prepared.

    Args:
        texts: the prompt itself, then the prompt behind each prefix; all end in the target.
        essence: `{subject} is a`, without an answer, of which the continuation is to stay; None without a subject.
    """

    texts: tuple[KeyedText, ...]
    essence: KeyedText | None

    @property
    def key(self) -> int:
        """Position of the key in the edit's own text."""
        return self.texts[0].key

    @property
    def tail(self) -> int:
        """Tokens of the edit's own text from the key on."""
        return len(self.texts[0].encoded) - self.key

    def tokens(self) -> int:
        """Of all its texts, as they run together."""
        texts = [*self.texts, *([] if self.essence is None else [self.essence])]
        return len(texts) * max(len(text.encoded) for text in texts)

    def shares(self) -> list[float]:
        """Weight of each text: the prompt itself counts as much as all prefixes together, as in MEMIT's keys."""
        others = len(self.texts) - 1
        return [0.5] + [0.5 / others] * others if others else [1.0]


def names_subject(edit: Edit, prompts: PromptFormat) -> bool:
    """Whether the edit has a subject and its prompt names it."""
    return edit.subject is not None and prompts.last_token_of(edit.prompt, edit.subject) is not None


def prepared(edit: Edit, prompts: PromptFormat, prefixes: Sequence[str], max_length: int | None) -> Fact:
    """The texts of an edit; those behind a prefix only where they fit into a context of `max_length` tokens.

    The key is the last token of the subject, or of the prompt where it names none.
    """
    subject = edit.subject if names_subject(edit, prompts) else None

    def keyed(prompt: Prompt) -> KeyedText:
        encoded = prompts.encode(prompt, edit.target)
        found = None if subject is None else prompts.last_token_of(prompt, subject)
        return KeyedText(encoded, encoded.answer_start - 1 if found is None else found)

    def fits(text: KeyedText) -> bool:
        return max_length is None or len(text.encoded) <= max_length

    others = [keyed(behind(prefix, edit.prompt)) for prefix in prefixes]
    essence = None if subject is None else _essence(subject, prompts)
    return Fact(
        (keyed(edit.prompt), *filter(fits, others)), essence if essence is not None and fits(essence) else None
    )


def _essence(subject: str, prompts: PromptFormat) -> KeyedText | None:
    prompt = f"{subject} is a"
    ids, key = prompts.prompt_ids(prompt), prompts.last_token_of(prompt, subject)
    return None if key is None else KeyedText(Encoded(ids, len(ids)), key)
