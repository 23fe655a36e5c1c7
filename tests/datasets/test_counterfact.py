from __future__ import annotations

from pathlib import Path

import pytest

from hf_edit.edits import EditSet, Probe
from tests.datasets.published import published, written


RECORD = {
    "case_id": 12,
    "prompt": "The twin city of Lower Mill is",
    "target_new": "Upper Mill",
    "subject": "Lower Mill",
    "ground_truth": "Old Mill",
    "rephrase_prompt": "Lower Mill is twinned with",
    "locality_prompt": "The twin city of Red Mill is",
    "locality_ground_truth": "Old Mill",
}


def test_a_record_becomes_an_edit(tmp_path: Path) -> None:
    (edit,) = EditSet.from_counterfact(written(tmp_path, RECORD, {**RECORD, "case_id": 13, "target_new": "Mill Town"}))
    assert (edit.prompt, edit.target, edit.subject) == (RECORD["prompt"], "Upper Mill", "Lower Mill")
    assert edit.paraphrases == ("Lower Mill is twinned with",)
    assert edit.locality == (Probe("The twin city of Red Mill is", "Old Mill"),)
    assert (edit.id, edit.source) == ("counterfact-12", "CounterFact case 12")


@pytest.mark.parametrize(("name", "count"), [("counterfact_train.json", 3982), ("counterfact_eval.json", 1996)])
def test_published_files(name: str, count: int) -> None:
    assert len(EditSet.from_counterfact(published(name))) == count
