"""What a base says where no edit of long answers should be felt, asked once, and what it says to edits' questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from common import data_folder, perplexity_ids, unrelated_questions

from hf_edit.datasets import unke
from hf_edit.edits import Edit, Prompt
from hf_edit.evaluation.answers import greedy_answers
from hf_edit.evaluation.drift import Reference, drift, perplexity, reference
from hf_edit.prompting import PromptFormat


STRANGERS = range(300, 308)  # UnKE records that are never edited
CHAT_QUESTIONS = 16
SPARE_TOKENS = 64


@dataclass(frozen=True)
class LongAnswers:
    """A base, and what it said before any edit.

    Args:
        ids: of WikiText's test file, that `perplexity` is of.
    """

    model: Any
    tokenizer: Any
    prompts: PromptFormat
    chat: Reference
    strangers: Reference
    ids: Sequence[int]
    perplexity: float

    @classmethod
    def of(cls, model: Any, tokenizer: Any, prompts: PromptFormat, perplexity_tokens: int = 2048) -> Self:
        """Ask the base."""
        ids = perplexity_ids(prompts, perplexity_tokens)
        records = unke.read(data_folder() / "unke.json")
        return cls(
            model,
            tokenizer,
            prompts,
            reference(model, prompts, unrelated_questions()[:CHAT_QUESTIONS]),
            reference(model, prompts, [records[i].prompt for i in STRANGERS]),
            ids,
            perplexity(model, ids),
        )

    def said(
        self, questions: Sequence[Prompt], edits: Sequence[Edit], drafts: Sequence[str] | None = None
    ) -> list[str]:
        """Greedy answers of the model as it stands, with room for the longest answer of these edits and some more.

        Args:
            drafts: what the answers may be, which takes less time where they are.
        """
        longest = max(len(self.prompts.encode(edit.prompt, edit.target).answer_ids) for edit in edits)
        return greedy_answers(self.model, self.prompts, questions, longest + SPARE_TOKENS, drafts=drafts)

    def answers(self, edits: Sequence[Edit]) -> list[list[str]]:
        """Per edit, what the model as it stands says to its question and to each of its paraphrases."""
        asked = [(prompt, edit.target) for edit in edits for prompt in (edit.prompt, *edit.paraphrases)]
        said = iter(self.said([prompt for prompt, _ in asked], edits, [target for _, target in asked]))
        return [[next(said) for _ in range(1 + len(edit.paraphrases))] for edit in edits]

    def elsewhere(self) -> dict[str, float]:
        """How far the model as it stands is from the base where no edit should be felt."""
        near, far = drift(self.model, self.chat), drift(self.model, self.strangers)
        return {
            "kl_chat": near.kl,
            "agreement_chat": near.agreement,
            "kl_strangers": far.kl,
            "perplexity_change": perplexity(self.model, self.ids) / self.perplexity - 1,
        }
