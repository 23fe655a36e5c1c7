"""Settings of statistics: where the tokens come from and how many."""

from __future__ import annotations

from dataclasses import dataclass

from hf_edit.settings import Settings, setting


@dataclass(frozen=True)
class StatisticsConfig(Settings):
    """Where second moments come from."""

    text: str = setting(
        "self",
        "Plain text: 'self' (the model writes it), the path of a text file, or 'dataset:ID:CONFIG:SPLIT:COLUMN'.",
    )
    tokens: int | None = setting(
        None, "Tokens of plain text; none: 5 for every input of the widest map that edits change.", at_least=1
    )
    conversations: int = setting(
        256, "Questions that the model invents and answers, for the prompt and answer parts.", at_least=0
    )
    answer_tokens: int = setting(16, "Longest invented answer, in tokens.", at_least=1)
    length: int = setting(64, "Tokens of plain text run together.", at_least=8)
    batch: int = setting(64, "Sequences run at once.", at_least=1)
    repo: str | None = setting(
        None,
        "Repository on the Hub (owner/name, or owner/name@revision) where statistics of this base and recipe are "
        "looked for before they are collected; none: $HF_EDIT_STATISTICS, and without it only the cache.",
        recorded=False,
    )


@dataclass(frozen=True)
class MomentWeights(Settings):
    """How much each part of the statistics counts in C, the second moment of what must not change."""

    chat_weight: float = setting(
        3.0, "Weight of the moment of all tokens of invented questions, the template's own among them.", at_least=0
    )
    prompt_weight: float = setting(
        0.1, "Share of the moment of their last tokens that is added to plain text's.", at_least=0
    )
    answer_weight: float = setting(0.3, "The same for their answers' tokens.", at_least=0)
    ridge: float = setting(1e-4, "Added to the moment's diagonal, relative to its mean eigenvalue.", above=0)

    def moment_weights(self) -> dict[str, float]:
        """Part -> weight."""
        return {
            "text": 1.0,
            "chat": self.chat_weight,
            "prompt": self.prompt_weight,
            "answer": self.answer_weight,
        }
