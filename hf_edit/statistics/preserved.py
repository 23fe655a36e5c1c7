"""What an update of this base must leave alone, as methods ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.progress import Progress
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.invented import invent_answers, invent_questions
from hf_edit.statistics.moments import SecondMoments
from hf_edit.statistics.store import obtain


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
        if self.prompts.name != "chat":
            return []
        model, prompts, config = self.model, self.prompts, self.config
        questions = invent_questions(model, prompts, config.conversations, config.batch, self.seed)
        answered = invent_answers(model, prompts, questions, config.answer_tokens, config.batch, self.seed)
        return [Encoded(tuple(ids), start) for ids, start in answered]
