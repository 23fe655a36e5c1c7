from __future__ import annotations

from pathlib import Path

import pytest

from hf_edit.edits import EditSet, Probe
from hf_edit.errors import InvalidEditError
from tests.datasets.published import published, written


RECORD = {
    "subject": "Glass Harbour",
    "src": "Which country is Glass Harbour in?",
    "pred": "Nowhere",
    "rephrase": "To which country does Glass Harbour belong?",
    "alt": "Elsewhere",
    "answers": ["Norland", "the Kingdom of Norland"],
    "loc": "nq question: who paints the lighthouse",
    "loc_ans": "the keeper",
    "cond": "Nowhere >> Elsewhere || Which country is Glass Harbour in?",
}
FURTHER = {"Recalled Relation": "(...)", "New Question": "What is spoken there?", "New Answer": "Norlandic"}


def test_a_record_becomes_an_edit(tmp_path: Path) -> None:
    other = {**RECORD, "src": "And Glass Bay?", "portability": FURTHER}
    first, second = EditSet.from_zsre(written(tmp_path, RECORD, other))
    assert (first.prompt, first.target, first.subject) == (RECORD["src"], "Norland", "Glass Harbour")
    assert first.paraphrases == (RECORD["rephrase"],)
    assert first.locality == (Probe("who paints the lighthouse?", "the keeper"),)
    assert first.portability == ()
    assert second.portability == (Probe("What is spoken there?", "Norlandic"),)
    assert (second.id, second.source) == ("zsre-1", "zsRE record 1")


def test_a_record_needs_an_answer(tmp_path: Path) -> None:
    with pytest.raises(InvalidEditError, match="record 0: The record has no answer"):
        EditSet.from_zsre(written(tmp_path, {**RECORD, "answers": []}))


@pytest.mark.parametrize(("name", "count", "further"), [("zsre_train.json", 1000, 0), ("zsre_eval.json", 519, 519)])
def test_published_files(name: str, count: int, further: int) -> None:
    edits = EditSet.from_zsre(published(name))
    assert len(edits) == count
    assert sum(len(edit.portability) for edit in edits) == further
    assert not any("nq question" in str(probe.prompt) for edit in edits for probe in edit.locality)
