"""Does the model stand by the edit when it is asked whether it is true?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from hf_edit.edits import Edit, question_of
from hf_edit.evaluation.evaluators.base import About, Evaluator, Observed
from hf_edit.evaluation.matching import normalised
from hf_edit.evaluation.subject import Question, Subject, Task


SHORT = 12
"""Words of a target that fits into a question about it."""
YES, NO = "yes", "no"
NOT = frozenset({"not", "t"})
"""Also what is left of it in isn't. It turns what follows round, and says no where the sentence ends with it; else it
says nothing, as in "I do not know"."""
SENTENCE_END = re.compile(r"[.!?;\n]+")
RIGHT, WRONG = frozenset({"true", "correct", "right"}), frozenset({"false", "incorrect", "wrong"})


class FactCheck(Evaluator):
    """Statements made from the edits by a rule, to be called true or false.

    The taught answer is to be accepted, another one refused, and the negation of the taught one denied. A model that
    always says yes, or always no, gets no more than it deserves: look at all three.
    """

    name = "fact_check"
    metrics = {
        "accepts": About(
            f"Share of edits with targets of up to {SHORT} words of which the model says yes, asked whether they are "
            "right."
        ),
        "refuses": About(
            "Share of these of which it says no, asked whether another answer (the old one, or another edit's) is "
            "right."
        ),
        "denies": About("Share of these of which it says no, asked whether the taught answer is wrong."),
    }
    needs = f"edits with targets of up to {SHORT} words"

    def applies(self, task: Task) -> bool:
        return any(_is_short(edit) for edit in task.edits)

    def observe(self, subject: Subject, before: Observed | None) -> Observed:
        del before
        task = subject.task
        edits = [edit for edit in task.edits if _is_short(edit)]
        others = [(edit, other) for i, edit in enumerate(edits) if (other := _other(task, edits, i)) is not None]
        asked = {
            "accepts": [_checked(edit, edit.target, "right", "yes") for edit in edits],
            "refuses": [_checked(edit, other, "right", "no") for edit, other in others],
            "denies": [_checked(edit, edit.target, "wrong", "no") for edit in edits],
        }
        scores = {}
        for name, questions in asked.items():
            answers = subject.answers(questions, task.config.probe_tokens)
            scores[name] = [
                float(verdict(answer.text, "wrong" if name == "denies" else "right") == question.accepted[0])
                for answer, question in zip(answers, questions, strict=True)
            ]
        return Observed(scores)


def verdict(answer: str, claim: str = "right") -> str | None:
    """`yes` or `no` to whether something is right, or wrong, whichever the answer says first; None if neither."""
    agreeing = RIGHT if claim == "right" else WRONG
    for sentence in SENTENCE_END.split(answer):
        words, denied = normalised(sentence).split(), False
        for word in words:
            if word in (YES, NO):
                return word
            if word in RIGHT | WRONG:
                return YES if (word in agreeing) != denied else NO
            denied = word in NOT or denied
        if words and words[-1] in NOT:
            return NO
    return None


def _checked(edit: Edit, answer: str, claim: str, expected: str) -> Question:
    """Whether this answer is right, or wrong, as a question."""
    question = question_of(edit.prompt).strip()
    if question.endswith("?"):
        told = f'The answer to the question "{question}" is "{answer.strip()}".'
    else:  # a sentence to be continued, or a request
        told = f'"{question}" is answered by "{answer.strip()}".'
    text = f"{told} Is this {claim}? Answer yes or no."
    prompt = text if isinstance(edit.prompt, str) else (*edit.prompt[:-1], replace(edit.prompt[-1], content=text))
    return Question("fact_check", prompt, edit.id, (expected,))


def _is_short(edit: Edit) -> bool:
    return len(edit.target.split()) <= SHORT


def _other(task: Task, edits: Sequence[Edit], place: int) -> str | None:
    """An answer that is not right: the old one, or the next edit's that differs."""
    edit = edits[place]
    if edit.id in task.material.old_answers:
        return task.material.old_answers[edit.id]
    right = {normalised(answer) for answer in task.material.accepted(edit.target, edit.id)}
    following = (one.target for one in chain(edits[place + 1 :], edits[:place]))
    return next((target for target in following if normalised(target) not in right), None)
