"""What an update of this base must leave alone, as methods ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hf_edit.edits import Prompt, question_of
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.progress import Progress
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.invented import invent_alike, invent_answers
from hf_edit.statistics.moments import SecondMoments
from hf_edit.statistics.store import obtain, obtain_corpus


@dataclass(frozen=True)
class Preserved:
    """Second moments and conversations of one base, obtained when they are asked for.

    Args:
        earlier: texts of edits taught before.
    """

    model: EditableModel
    prompts: PromptFormat
    config: StatisticsConfig
    seed: int
    progress: Progress
    earlier: Sequence[Encoded] = field(default=())

    def moments(self, linears: Sequence[EditableLinear]) -> SecondMoments:
        """Second moments of the inputs of these linears, from the cache or by collecting them."""
        return obtain(self.model, self.prompts, linears, self.config, self.seed, self.progress)

    def conversations(self) -> Sequence[Encoded]:
        """Questions that the base invented, with its own answers; none where the format has no turns."""
        return obtain_corpus(self.model, self.prompts, self.config, self.seed, self.progress).conversations

    def strangers(self, questions: Sequence[Prompt], count: int) -> Sequence[Encoded]:
        """Up to `count` questions for each of these that begin like it, with the base's own answers."""
        if self.prompts.name != "chat":
            return []
        asked, config = [question_of(question) for question in questions], self.config
        self.progress.stage("questions of the same kind", 1)
        alike = invent_alike(self.model, self.prompts, asked, count, config.batch, self.seed)
        answered = invent_answers(self.model, self.prompts, alike, config.answer_tokens, config.batch, self.seed)
        strangers = [encoded for encoded in answered if len(encoded) > encoded.answer_start]
        self.progress.step()
        return strangers
