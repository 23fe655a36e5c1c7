from __future__ import annotations

from pathlib import Path

import pytest

from hf_edit.edits import EditSet, Probe
from hf_edit.errors import InvalidEditError
from tests.datasets.published import published, written


REWRITE = {
    "prompt": "{} was founded by",
    "subject": "Inkwell House",
    "question": "Who founded Inkwell House?",
    "fact_new_uns": "Inkwell House, a small press, was founded by the printer Odo Lamm in a former dairy.",
}
RECORD = {
    "case_id": 3,
    "requested_rewrite": [REWRITE],
    "questions": ["What was the founder of Inkwell House?", "Which trade did its founder have?"],
    "new_answer": "printer",
}


def test_a_record_becomes_an_edit(tmp_path: Path) -> None:
    (edit,) = EditSet.from_mquake(written(tmp_path, RECORD))
    assert (edit.prompt, edit.target, edit.subject) == (REWRITE["question"], REWRITE["fact_new_uns"], "Inkwell House")
    assert edit.portability == tuple(Probe(question, "printer") for question in RECORD["questions"])
    assert (edit.id, edit.source) == ("mquake-3", "MQuAKE-CF case 3")


def test_the_first_of_two_rewrites_implies_no_answer_several_hops_away(tmp_path: Path) -> None:
    other = {**REWRITE, "subject": "Odo Lamm", "question": "What is Odo Lamm?"}
    (edit,) = EditSet.from_mquake(written(tmp_path, {**RECORD, "requested_rewrite": [REWRITE, other]}))
    assert edit.prompt == REWRITE["question"]
    assert edit.portability == ()


@pytest.mark.parametrize(
    ("rewrites", "expected"),
    [
        ([], "record 0: The record has no rewrite"),
        (
            [{"prompt": "{} was founded by"}],
            "item 0 of field 'requested_rewrite' of the record lacks the field 'question'; it has 'prompt'",
        ),
        ("Who?", "field 'requested_rewrite' of the record is of type str, not a list"),
    ],
)
def test_broken_rewrites(tmp_path: Path, rewrites: object, expected: str) -> None:
    with pytest.raises(InvalidEditError, match=expected):
        EditSet.from_mquake(written(tmp_path, {**RECORD, "requested_rewrite": rewrites}))


def test_published_file() -> None:
    edits = EditSet.from_mquake(published("mquake_cf.json"))
    assert len(edits) == 157
    assert {len(edit.portability) for edit in edits} == {0, 3}
