"""What an update of this base must leave alone, as methods ask for it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from hf_edit.edits import Edit, Message, Prompt, prompt_key, question_of
from hf_edit.errors import StatisticsError
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.models.generation import greedy
from hf_edit.processes import Processes
from hf_edit.progress import Progress
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.invented import continued, invent_answers
from hf_edit.statistics.moments import SecondMoments
from hf_edit.statistics.names import openings_alike
from hf_edit.statistics.store import obtain, obtain_corpus


MOST_INPUTS = 1 << 15
"""Of fused experts side by side: 9 GB of second moment."""


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
        """Second moments of the inputs of these linears, as `obtain` finds or collects them.

        Raises:
            StatisticsError: fused experts have too many inputs together.
        """
        for linear in linears:
            if linear.experts is not None and linear.d_in > MOST_INPUTS:
                raise StatisticsError(
                    f"The experts {linear.name} have {linear.d_in} inputs together, more than {MOST_INPUTS}: their "
                    f"second moment would take {linear.d_in**2 * 8 / 1e9:.0f} GB.",
                    "Use finetune, which needs none, or leave experts = False.",
                )
        return obtain(self.model, self.prompts, linears, self.config, self.seed, self.progress)

    def conversations(self) -> Sequence[Encoded]:
        """Questions that the base invented, with its own answers."""
        return obtain_corpus(self.model, self.prompts, self.config, self.seed, self.progress).conversations

    def strangers(self, edits: Sequence[Edit], count: int) -> Sequence[Encoded]:
        """Up to `count` questions of the same kind for each edit, with the base's own answers.

        Half of them ask the same of another edit's subject, where subjects are known; the others begin like the
        edit's, with another name in it if there is one, and go on as the model likes. The answers are the likeliest.
        None is another wording of an edit, as far as these are known. Several processes share the writing.
        """
        config, processes = self.config, Processes.joined(self.model.device)
        self.progress.stage("questions of the same kind", 1)
        behind: dict[tuple[Message, ...], list[Edit]] = {}
        for edit in edits:
            behind.setdefault(() if isinstance(edit.prompt, str) else edit.prompt[:-1], []).append(edit)
        taken = {prompt_key(prompt) for edit in edits for prompt in (edit.prompt, *edit.paraphrases)}
        questions = [
            question
            for messages, some in behind.items()
            for question in self._alike(messages, some, edits, count, processes)
            if prompt_key(question) not in taken
        ]
        answered = invent_answers(
            self.model, self.prompts, questions, config.answer_tokens, config.batch, lambda _: greedy, processes
        )
        strangers = [encoded for encoded in answered if encoded.answer_ids]
        self.progress.step()
        return strangers

    def _alike(
        self,
        messages: tuple[Message, ...],
        edits: Sequence[Edit],
        every: Sequence[Edit],
        count: int,
        processes: Processes,
    ) -> list[Prompt]:
        """Questions like these edits', behind the messages that theirs stand behind, such as a system prompt."""
        swapped = with_other_subjects(edits, count // 2, self.seed, every)
        more = count - count // 2 if swapped else count
        openings = openings_alike(self.model, self.prompts, edits, more, self.seed)
        alike = continued(self.model, self.prompts, openings, self.config, self.seed, processes)
        return [(*messages, Message("user", text)) if messages else text for text in [*swapped, *alike]]


def with_other_subjects(
    edits: Sequence[Edit], count: int, seed: int, among: Sequence[Edit] | None = None
) -> list[str]:
    """The questions of edits that name their subject, up to `count` for each, with subjects of other edits instead.

    Args:
        among: whose subjects; none: those of the edits themselves.
    """
    subjects = list(dict.fromkeys(edit.subject for edit in among or edits if edit.subject))
    generator = random.Random(seed)
    questions: dict[str, None] = {}
    for edit in edits:
        question = question_of(edit.prompt)
        if edit.subject and edit.subject in question:
            others = [subject for subject in subjects if subject != edit.subject]
            for other in generator.sample(others, min(count, len(others))):
                questions[question.replace(edit.subject, other)] = None
    return list(questions)
