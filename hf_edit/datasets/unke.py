"""UnKEBench: answers of about 90 words, one paraphrase, and sub-questions on details of the answer."""

from __future__ import annotations

import os

from hf_edit.datasets.records import Record, read_edits
from hf_edit.edits import Edit, EditSet, Probe
from hf_edit.errors import InvalidEditError


def read(path: str | os.PathLike[str], limit: int | None = None) -> EditSet:
    """The edits `question -> answer`, paraphrased by `para_question`; sub-questions become portability probes."""
    return read_edits(path, _edit, limit)


def _edit(record: Record) -> Edit:
    number = record.number("id")
    questions, answers = record.texts("sub_question"), record.texts("sub_answer")
    if len(questions) != len(answers):
        message = f"There are {len(questions)} sub-questions and {len(answers)} sub-answers."
        raise InvalidEditError(message, "Give each question an answer.")
    return Edit(
        prompt=record.text("question"),
        target=record.text("answer"),
        paraphrases=(record.text("para_question"),),
        portability=tuple(Probe(question, answer) for question, answer in zip(questions, answers, strict=True)),
        id=f"unke-{number}",
        source=f"UnKEBench record {number}",
    )
