"""A model as it stands, being asked: every question once, every answer kept.

Several processes share the asking here, so that evaluators need not care: all of them call the same methods in the
same order, and get the same. A process remembers its own share alone, which spares it the asking, never the telling
that others wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, groupby
from typing import TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from hf_edit.batching import batched
from hf_edit.edits import Edit, Prompt, prompt_key
from hf_edit.evaluation.answers import room_for_answers
from hf_edit.evaluation.config import SHORTEST_LIMIT, EvaluateConfig, Material
from hf_edit.evaluation.edit_scores import EditScore, edit_scores
from hf_edit.evaluation.following import answer_logits
from hf_edit.evaluation.recall import Recall
from hf_edit.models.editable import EditableModel
from hf_edit.models.generation import continuations, drafted
from hf_edit.processes import Processes
from hf_edit.prompting import Encoded, PromptFormat


T = TypeVar("T")
R = TypeVar("R")

Context = Callable[[Prompt, str | None], Prompt]
"""Puts what is to be read in front of a question, given the id of the edit that it belongs to, if to one."""


@dataclass(frozen=True)
class Question:
    """Something to answer freely.

    Args:
        edit: id of the edit that it belongs to, if to one.
        accepted: what counts as right, if that is known.
        taught: what an edit makes of the answer, if it is to change it.
    """

    kind: str
    prompt: Prompt
    edit: str | None = None
    accepted: tuple[str, ...] = ()
    taught: str | None = None


@dataclass(frozen=True)
class Answer:
    """A greedy answer: its text, its ids without the end of the turn, and whether the model ended it by itself."""

    text: str
    ids: tuple[int, ...]
    stopped: bool


@dataclass(frozen=True)
class Task:
    """What every model of an evaluation is asked.

    Args:
        prompts: the format of the edits.
        chat: the format of questions that have nothing to do with them: chat where there is a template.
        max_new_tokens: of answers to the edits' own questions.
    """

    edits: Sequence[Edit]
    material: Material
    config: EvaluateConfig
    prompts: PromptFormat
    chat: PromptFormat
    max_new_tokens: int

    @classmethod
    def of(cls, edits: Sequence[Edit], material: Material, config: EvaluateConfig, prompts: PromptFormat) -> Task:
        """The task, with one limit for all answers to the edits' questions."""
        longest = max((len(prompts.encode(edit.prompt, edit.target).answer_ids) for edit in edits), default=0)
        limit = config.max_new_tokens or max(SHORTEST_LIMIT, 2 * longest)
        return cls(edits, material, config, prompts, PromptFormat.of(None, prompts.tokenizer), limit)

    def own(self, edit: Edit) -> Question:
        """The edit's own question."""
        return Question("prompt", edit.prompt, edit.id, self.material.accepted(edit.target, edit.id), edit.target)

    def reworded(self, edit: Edit) -> list[Question]:
        """Its paraphrases."""
        return [
            Question("paraphrase", prompt, edit.id, self.material.accepted(edit.target, edit.id), edit.target)
            for prompt in edit.paraphrases
        ]


@dataclass(frozen=True)
class _Asked:
    """A question as it is put, and as token ids."""

    row: tuple[int, ...]
    prompt: Prompt
    taught: str | None


class Subject:
    """One model.

    Args:
        context: applied to every question before it is put.
        recall: of this very model, from earlier evaluations.
        edited: whether it may say what was taught, which is then tried first: the answers are the same without.
    """

    def __init__(
        self,
        view: EditableModel,
        task: Task,
        context: Context | None = None,
        recall: Recall | None = None,
        edited: bool = False,
    ) -> None:
        self.view, self.task = view, task
        self.processes = Processes.joined(view.device)
        """Those that share the asking."""
        self._context, self._recall, self._edited = context, recall, edited
        self._answers: dict[tuple[str, str, int], Answer] = {}
        self.asked: dict[tuple[str, str | None, str, int], tuple[Question, str]] = {}
        """Every question so far, in order, with its answer; twice where it was asked with two limits."""

    @property
    def model(self) -> PreTrainedModel:
        """The model itself."""
        return self.view.model

    def put(self, prompt: Prompt, edit: str | None) -> Prompt:
        """The question as this model gets it; `edit` is the id of the one that it belongs to, if to one."""
        return self._context(prompt, edit) if self._context else prompt

    def shared(self, what: Hashable, items: Sequence[T], ask: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
        """What asking the model about the items finds, joined in order; of several processes each asks about a run.

        Args:
            what: says, with the items, all that is asked: it is remembered under these.
            ask: called with at least one item.

        Raises:
            HfEditError: in all processes, what `ask` raised in one of them.
        """
        runs = [tuple(run) for run in self.processes.batches(items, max(1, len(items)))]
        found = self.processes.map(lambda run: self._once((what, run), lambda: ask(run)), runs)
        return [*chain.from_iterable(found)]

    def answers(self, questions: Sequence[Question], limit: int, prompts: PromptFormat | None = None) -> list[Answer]:
        """Greedy answers with a natural stop, cut at `limit` tokens, in order; what was asked before is remembered.

        Raises:
            ConfigError: a question leaves no room for an answer in the model's context.
        """
        prompts, size = prompts or self.task.prompts, self.task.config.batch
        put = [self.put(question.prompt, question.edit) for question in questions]
        keys = [(prompts.name, prompt_key(prompt), limit) for prompt in put]
        new = {
            key: (prompt, question.taught)
            for key, prompt, question in zip(keys, put, questions, strict=True)
            if key not in self._answers
        }
        asked = [_Asked(prompts.prompt_ids(prompt), prompt, taught) for prompt, taught in new.values()]

        def room_in(batch: Sequence[_Asked]) -> int:
            return room_for_answers([one.row for one in batch], limit, self.view.max_length)

        # where answers are cut off must not depend on how many processes there are, though batches do
        parts = [
            (part, room)
            for room, batches in groupby(batched(asked, size), room_in)
            for part in self.processes.batches([*chain.from_iterable(batches)], size)
        ]
        found = self.processes.map(lambda part: self._answered(*part, prompts), parts)
        self._answers.update(zip(new, chain.from_iterable(found), strict=True))
        answers = [self._answers[key] for key in keys]
        for question, answer in zip(questions, answers, strict=True):
            place = (question.kind, question.edit, prompt_key(question.prompt), limit)
            self.asked.setdefault(place, (question, answer.text))
        return answers

    def grouped(self, groups: Sequence[Sequence[Question]], limit: int) -> list[list[Answer]]:
        """`answers` to groups of questions, asked together, in the same groups."""
        said = iter(self.answers([*chain.from_iterable(groups)], limit))
        return [[next(said) for _ in group] for group in groups]

    def own(self) -> Iterator[tuple[Edit, Answer]]:
        """Every edit with the answer to its own question."""
        task = self.task
        return zip(task.edits, self.answers([task.own(edit) for edit in task.edits], task.max_new_tokens), strict=True)

    def reworded(self) -> Iterator[tuple[Edit, list[Answer]]]:
        """Every edit that has paraphrases, with the answers to them."""
        edits = [edit for edit in self.task.edits if edit.paraphrases]
        said = self.grouped([*map(self.task.reworded, edits)], self.task.max_new_tokens)
        return zip(edits, said, strict=True)

    @cached_property
    def scores(self) -> list[EditScore]:
        """Every edit under teacher forcing, old answers among what is compared where all are known."""
        edits, old, prompts = self.task.edits, self.task.material.old_answers, self.task.prompts
        compared = all(edit.id in old for edit in edits)

        def ask(some: Sequence[tuple[Edit, str]]) -> list[EditScore]:
            asked, known = zip(*some, strict=True)
            return edit_scores(self.model, prompts, asked, known if compared else None)

        pairs = [(self._put(edit), old[edit.id] if compared else "") for edit in edits]
        return self.shared(("scores", prompts.name, compared), pairs, ask)

    def distributions(self, texts: Sequence[Encoded]) -> list[Tensor]:
        """Per text (a, V): the log probabilities of each of its answer's tokens, fp32 on the CPU.

        Of several processes each gets those of its share alone: they are too large to be told. `compared` takes them.
        """
        own = tuple(self.processes.mine(texts))

        def ask() -> list[Tensor]:
            found = {i: logits.log_softmax(-1).cpu() for i, logits, _ in answer_logits(self.model, own, batch=4)}
            return [found[i] for i in range(len(own))]

        return ask() if self._recall is None else self._recall.tensors_once(own, ask)

    def compared(
        self, before: Sequence[Tensor], texts: Sequence[Encoded], compare: Callable[[Tensor, Tensor], R]
    ) -> list[R]:
        """Per text what `compare` makes of another model's distributions and of this one's.

        Args:
            before: the other's `distributions` of as many texts.
        """
        places = range(len(texts))
        pairs = dict(
            zip(self.processes.mine(places), zip(before, self.distributions(texts), strict=True), strict=True)
        )
        return self.processes.map(lambda i: compare(*pairs[i]), places)

    def _once(self, key: Hashable, ask: Callable[[], T]) -> T:
        return ask() if self._recall is None else self._recall.once(key, ask)

    def _answered(self, part: Sequence[_Asked], room: int, prompts: PromptFormat) -> list[Answer]:
        drafts = [self._draft(one.prompt, one.taught, prompts) for one in part]
        written = self._continued(tuple(one.row for one in part), drafts, prompts.stop_ids, room)
        return [Answer(prompts.decode(ids), tuple(ids), len(ids) < room) for ids in written]

    def _continued(
        self,
        rows: tuple[tuple[int, ...], ...],
        drafts: Sequence[Sequence[int]],
        stop_ids: frozenset[int],
        limit: int,
    ) -> Sequence[Sequence[int]]:
        def ask() -> list[list[int]]:
            if any(drafts):
                return drafted(self.model, rows, drafts, stop_ids, limit)
            return continuations(self.model, rows, stop_ids, limit)

        return self._once(("continuations", rows, stop_ids, limit), ask)

    def _draft(self, prompt: Prompt, taught: str | None, prompts: PromptFormat) -> tuple[int, ...]:
        """What was taught, as ids; none of questions that are not to change.

        Their answers from before the edit do not pay as drafts, in batches on a CPU: most part from them half way.
        """
        if not self._edited or taught is None:
            return ()
        return prompts.encode(prompt, taught).answer_ids

    def _put(self, edit: Edit) -> Edit:
        return replace(
            edit,
            prompt=self.put(edit.prompt, edit.id),
            paraphrases=tuple(self.put(prompt, edit.id) for prompt in edit.paraphrases),
            locality=tuple(replace(probe, prompt=self.put(probe.prompt, edit.id)) for probe in edit.locality),
        )
