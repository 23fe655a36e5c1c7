"""Answers that an edit must leave alone, against those of the model without it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from hf_edit.batching import spread
from hf_edit.evaluation.evaluators.base import About, Evaluator, Observed
from hf_edit.evaluation.subject import Answer, Question, Subject, Task
from hf_edit.packs.evaluation import FIXED
from hf_edit.prompting import Encoded, PromptFormat


def held_metrics(whose: str) -> dict[str, About]:
    """What `Held` measures of questions of a kind."""
    return {
        "same": About(
            f"Share of free answers to {whose} that are, token for token, those of the model without the edit."
        ),
        "kl": About(
            f"KL(without || with the edit) in nats per token along the unedited model's own answers to {whose}.",
            FIXED,
            higher_is_better=False,
            statistic="amount",
        ),
        "agreement": About(
            f"Share of the tokens of the unedited model's own answers to {whose} at which the same token is the "
            "likeliest for both.",
            FIXED,
        ),
    }


@dataclass(frozen=True)
class Before:
    """What the unedited model said.

    Args:
        texts, log_probs: of some of the questions: their answers as ids, and the distributions along them.
    """

    questions: Sequence[Question]
    answers: Sequence[Answer]
    followed: Sequence[Question]
    texts: Sequence[Encoded]
    log_probs: Sequence[Tensor]


class Held(Evaluator):
    """Questions of a kind whose answers are not to change."""

    compares = True

    @abstractmethod
    def questions(self, subject: Subject) -> Sequence[Question]:
        """What is asked; found while the model has no edit."""

    def prompts(self, task: Task) -> PromptFormat:
        """The format in which it is asked."""
        return task.prompts

    def observe(self, subject: Subject, before: Observed | None) -> Observed:
        task = subject.task
        prompts, limit = self.prompts(task), task.config.probe_tokens
        if before is None:
            questions = self.questions(subject)
            answers = subject.answers(questions, limit, prompts)
            chosen = spread(range(len(questions)), task.config.drift_questions)
            texts = [_text(subject, prompts, questions[i], answers[i]) for i in chosen]
            followed = [questions[i] for i in chosen]
            return Observed({}, Before(questions, answers, followed, texts, subject.distributions(texts)))
        base: Before = before.kept
        now = subject.answers(base.questions, limit, prompts)
        same = [float(a.ids == b.ids) for a, b in zip(base.answers, now, strict=True)]
        own = [
            Encoded((*ids, *text.answer_ids), len(ids))
            for question, text in zip(base.followed, base.texts, strict=True)
            for ids in [prompts.prompt_ids(subject.put(question.prompt, question.edit))]
        ]
        moved = subject.compared(base.log_probs, own, _moved)
        return Observed(
            {
                "same": by_edit(base.questions, same),
                "kl": by_edit(base.followed, [kl for kl, _ in moved]),
                "agreement": by_edit(base.followed, [agreement for _, agreement in moved]),
            }
        )


def by_edit(questions: Sequence[Question], scores: Sequence[float]) -> list[float]:
    """Averages for each edit; questions that belong to none stand for themselves."""
    found: dict[Any, list[float]] = {}
    for i, (question, score) in enumerate(zip(questions, scores, strict=True)):
        found.setdefault(i if question.edit is None else question.edit, []).append(score)
    return [fmean(some) for some in found.values()]


def _moved(p: Tensor, q: Tensor) -> tuple[float, float]:
    """KL(p || q) and the share of tokens with the same likeliest one, of log probabilities (a, V)."""
    kl, agreement = (p.exp() * (p - q)).sum(-1).mean(), (p.argmax(-1) == q.argmax(-1)).float().mean()
    return float(kl), float(agreement)


def _text(subject: Subject, prompts: PromptFormat, question: Question, answer: Answer) -> Encoded:
    """The question with the beginning of its answer; where the model stopped within it, its end too."""
    asked, most = prompts.prompt_ids(subject.put(question.prompt, question.edit)), subject.task.config.drift_tokens
    ends = (prompts.end_id,) if answer.stopped else ()
    return Encoded((*asked, *(*answer.ids, *ends)[:most]), len(asked))
