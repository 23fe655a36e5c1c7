"""How near free answers come to long targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from statistics import fmean

from hf_edit.edits import Edit
from hf_edit.evaluation.encoders import BertScore
from hf_edit.evaluation.evaluators.base import About, Evaluator, Observed, columns
from hf_edit.evaluation.scores import bleu, common_prefix, contains, rouge_l
from hf_edit.evaluation.subject import Answer, Question, Subject, Task


LONG = 20
"""Words from which on a target counts as long."""

Score = Callable[[Edit, Answer], float]


class LongForm(Evaluator):
    """Original and paraphrased question apart; nothing is cut to the target's length."""

    name = "long_form"
    metrics = {
        **{
            f"{score}{suffix}": About(f"{what} of free answers to {asked} with the taught ones.")
            for suffix, asked in (("", "the edits' own questions"), ("_paraphrase", "paraphrases, averaged by edit,"))
            for score, what in (
                ("bleu", "Sentence BLEU over tokens (sacrebleu, smoothed)"),
                ("rouge_l", "ROUGE-L F1 over words (rouge-score)"),
                ("bertscore", "BERTScore F1 (the encoder is named in the protocol)"),
                ("prefix", "Share of the target's tokens that the answer begins with,"),
            )
        },
        "prefix_tokens": About(
            "Tokens of the taught answer with which the free answer begins, before they part.", statistic="amount"
        ),
        "sub_questions": About(
            "Share of sub-questions (portability probes, averaged for each edit) whose free answer holds the right "
            "one."
        ),
    }
    needs = f"edits with targets of more than {LONG} words"

    def applies(self, task: Task) -> bool:
        return any(map(_is_long, task.edits))

    def check(self, task: Task) -> None:
        super().check(task)
        bleu("a", "a")  # the libraries are there
        rouge_l("a", "a")
        if task.config.bertscore_model:
            _bertscore(task.config.bertscore_model, task.config.bertscore_layer)

    def observe(self, subject: Subject, before: Observed | None) -> Observed:
        del before
        task = subject.task
        scores = _scores(task)

        def scored(some: tuple[Edit, Sequence[Answer]]) -> dict[str, float]:
            edit, answers = some
            return {name: fmean(score(edit, answer) for answer in answers) for name, score in scores.items()}

        said = [(edit, answer) for edit, answer in subject.own() if _is_long(edit)]
        again = [(edit, answers) for edit, answers in subject.reworded() if _is_long(edit)]
        # shared as well, since an encoder may take longer than the model
        own = columns(subject.processes.map(scored, [(edit, [answer]) for edit, answer in said]))
        reworded = {
            f"{name}_paraphrase": values for name, values in columns(subject.processes.map(scored, again)).items()
        }
        tokens = [float(_shared(task, edit, answer)[0]) for edit, answer in said]
        return Observed({**own, **reworded, "prefix_tokens": tokens, "sub_questions": sub_questions(subject)})


def sub_questions(subject: Subject) -> Sequence[float]:
    """Per edit that has some, the share that is answered right anywhere in the answer."""
    task = subject.task
    asked = [
        [
            Question("portability", probe.prompt, edit.id, task.material.accepted(str(probe.answer), edit.id))
            for probe in edit.portability
        ]
        for edit in task.edits
        if _is_long(edit) and edit.portability
    ]
    said = subject.grouped(asked, task.config.probe_tokens)
    return [
        fmean(contains(answer.text, question.accepted) for question, answer in zip(*group, strict=True))
        for group in zip(asked, said, strict=True)
    ]


def _scores(task: Task) -> dict[str, Score]:
    def prefix(edit: Edit, answer: Answer) -> float:
        shared, length = _shared(task, edit, answer)
        return shared / length

    scores: dict[str, Score] = {
        "bleu": lambda edit, answer: bleu(answer.text, edit.target),
        "rouge_l": lambda edit, answer: rouge_l(answer.text, edit.target),
        "prefix": prefix,
    }
    if task.config.bertscore_model:
        encoder = _bertscore(task.config.bertscore_model, task.config.bertscore_layer)
        scores["bertscore"] = lambda edit, answer: encoder.f1(answer.text, edit.target)
    return scores


def _is_long(edit: Edit) -> bool:
    return len(edit.target.split()) > LONG


def _shared(task: Task, edit: Edit, answer: Answer) -> tuple[int, int]:
    """How many tokens of the target the answer begins with, of how many."""
    target = task.prompts.encode(edit.prompt, edit.target).answer_ids[:-1]
    return common_prefix(answer.ids, target), len(target)


@cache
def _bertscore(model: str, layer: int) -> BertScore:
    return BertScore.load(model, layer)
