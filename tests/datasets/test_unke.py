from __future__ import annotations

from pathlib import Path

import pytest

from hf_edit.edits import EditSet, Probe
from hf_edit.errors import InvalidEditError
from tests.datasets.published import published, written


RECORD = {
    "id": 6,
    "question": "What does Ada Pell sell?",
    "para_question": "Which goods does Ada Pell offer?",
    "answer": "Ada Pell sells umbrellas made of oiled paper.",
    "sub_question": ["What are the umbrellas made of?"],
    "sub_answer": ["Oiled paper."],
}


def test_a_record_becomes_an_edit(tmp_path: Path) -> None:
    (edit,) = EditSet.from_unke(written(tmp_path, RECORD))
    assert (edit.prompt, edit.target) == (RECORD["question"], RECORD["answer"])
    assert edit.paraphrases == (RECORD["para_question"],)
    assert edit.portability == (Probe("What are the umbrellas made of?", "Oiled paper."),)
    assert (edit.id, edit.source) == ("unke-6", "UnKEBench record 6")


def test_each_sub_question_needs_its_answer(tmp_path: Path) -> None:
    with pytest.raises(InvalidEditError, match=r"records.json: record 1: There are 1 sub-questions and 0 sub-answers"):
        EditSet.from_unke(written(tmp_path, {**RECORD, "question": "Who?"}, {**RECORD, "sub_answer": []}))


def test_published_file() -> None:
    edits = EditSet.from_unke(published("unke.json"))
    assert len(edits) == 500
    assert all(edit.paraphrases and edit.portability for edit in edits)
