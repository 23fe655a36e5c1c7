from __future__ import annotations

from pathlib import Path

from hf_edit.edits import EditSet
from tests.datasets.published import published, written


RECORD = {"id": 4, "question": "Add 1 and 1.", "answer": "The sum is 2.\n", "category": "math"}


def test_a_record_becomes_an_edit(tmp_path: Path) -> None:
    (edit,) = EditSet.from_editeverything(written(tmp_path, RECORD))
    assert (edit.prompt, edit.target) == ("Add 1 and 1.", "The sum is 2.\n")
    assert (edit.id, edit.source) == ("editeverything-4", "EditEverything record 4, math")


def test_the_first_of_two_records_with_one_question_is_kept(tmp_path: Path) -> None:
    second = {**RECORD, "id": 5, "answer": "Two."}
    assert EditSet.from_editeverything(written(tmp_path, RECORD, second)).ids == ("editeverything-4",)


def test_published_file() -> None:
    assert len(EditSet.from_editeverything(published("editeverything.json"))) == 274
