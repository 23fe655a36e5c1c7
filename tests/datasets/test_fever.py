from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_edit.edits import EditSet, Probe
from hf_edit.errors import InvalidEditError
from tests.datasets.published import written


RECORD: dict[str, Any] = {
    "prompt": "Lower Mill has a bridge.",
    "equiv_prompt": ["There is a bridge in Lower Mill.", "A bridge stands in Lower Mill."],
    "unrel_prompt": "Red Mill has a choir.",
    "alt": False,
    "unrel_ans": 1,
}


def test_a_record_becomes_an_edit(tmp_path: Path) -> None:
    (edit,) = EditSet.from_fever(written(tmp_path, RECORD))
    assert (edit.prompt, edit.target) == ("Lower Mill has a bridge.", "false")
    assert edit.paraphrases == tuple(RECORD["equiv_prompt"])
    assert edit.locality == (Probe("Red Mill has a choir.", "true"),)


def test_labels_may_be_text_but_no_other_number(tmp_path: Path) -> None:
    (edit,) = EditSet.from_fever(written(tmp_path, {**RECORD, "alt": "REFUTES"}))
    assert edit.target == "REFUTES"
    with pytest.raises(InvalidEditError, match="record 0: The label 'alt' is 2"):
        EditSet.from_fever(written(tmp_path, {**RECORD, "alt": 2}))
