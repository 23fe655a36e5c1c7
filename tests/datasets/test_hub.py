from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hf_edit.edits import EditSet, Probe
from hf_edit.errors import ConfigError, InvalidEditError


ROWS = [
    {
        "uid": i,
        "asked": f"Question {i}?",
        "fact": {"answers": [f"answer {i}", "other"], "about": None},
        "rephrased": f"Rephrased {i}?",
        "near": ["What else?", "What more?"],
        "near_answers": ["this", None],
    }
    for i in range(3)
]
MAPPING = {"prompt": "asked", "target": "fact.answers.0"}


def test_columns_become_fields() -> None:
    mapping = {
        **MAPPING,
        "id": "uid",
        "subject": "fact.about",
        "paraphrases": "rephrased",
        "locality": {"prompt": "near", "answer": "near_answers"},
        "portability": {"prompt": "near.0", "answer": "near_answers.0"},
    }
    edits = EditSet.from_dataset(ROWS, mapping=mapping, limit=2)
    assert edits.ids == ("0", "1")
    assert (edits[1].prompt, edits[1].target, edits[1].subject) == ("Question 1?", "answer 1", None)
    assert edits[1].paraphrases == ("Rephrased 1?",)
    assert edits[1].locality == (Probe("What else?", "this"), Probe("What more?", None))
    assert edits[1].portability == (Probe("What else?", "this"),)
    assert edits[1].source is None


def test_columns_of_lists_messages_and_probes_are_taken_as_they_are() -> None:
    row = {
        "conversation": [{"role": "user", "content": "Who?"}],
        "answer.text": "Nobody.",  # a column's own name goes before a path
        "other": ["Who then?", "Who else?"],
        "probes": [{"prompt": "Why?"}],
        "none": None,
    }
    mapping = {"prompt": "conversation", "target": "answer.text", "paraphrases": "other", "locality": "probes"}
    (edit,) = EditSet.from_dataset([row], mapping={**mapping, "portability": {"prompt": "none"}})
    assert len(edit.paraphrases) == 2
    assert edit.locality == (Probe("Why?"),)
    assert edit.portability == ()


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"prompt": "asked"}, "no column for 'target'"),
        ({**MAPPING, "topic": "x"}, "names 'topic', no field of an edit"),
        ({**MAPPING, "subject": 3}, "mapping of 'subject' is 3"),
        ({**MAPPING, "subject": {"prompt": "x"}}, "mapping of 'subject'"),
        ({**MAPPING, "locality": {"answer": "x"}}, "mapping of 'locality'"),
    ],
)
def test_mappings_that_make_no_edits(mapping: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        EditSet.from_dataset(ROWS, mapping=mapping)


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({**MAPPING, "prompt": "question"}, "row 0: There is no 'question'; there are 'uid', 'asked'"),
        ({**MAPPING, "target": "fact.answers.2"}, "row 0: There is no '2'; the value is of type list"),
        ({**MAPPING, "target": "fact.answers"}, "row 0: The target is of type list, not text"),
        ({**MAPPING, "locality": {"prompt": "near", "answer": "asked"}}, "row 0: 2 prompts of probes"),
        ({**MAPPING, "prompt": "near.0"}, "data set: .* two answers"),
    ],
)
def test_rows_that_make_no_edit_are_named(mapping: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidEditError, match=expected):
        EditSet.from_dataset(ROWS, mapping=mapping)


def test_a_data_set_with_splits_is_not_one_of_them() -> None:
    with pytest.raises(ConfigError, match="of type dict"):
        EditSet.from_dataset({"train": ROWS}, mapping=MAPPING)


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="limit of edits is -1"):
        EditSet.from_dataset(ROWS, mapping=MAPPING, limit=-1)


def test_an_id_needs_a_split() -> None:
    with pytest.raises(ConfigError, match="No split of 'me/facts'"):
        EditSet.from_dataset("me/facts", mapping=MAPPING)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'hf-edit\[datasets\]'"):
        EditSet.from_dataset("me/facts", split="train", mapping=MAPPING)


def test_real_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(ROWS)
    edits = EditSet.from_dataset(rows, mapping={**MAPPING, "locality": {"prompt": "near", "answer": "near_answers"}})
    assert [edit.target for edit in edits] == ["answer 0", "answer 1", "answer 2"]
    rows.to_parquet(str(tmp_path / "facts" / "train.parquet"))
    loaded = EditSet.from_dataset(str(tmp_path / "facts"), split="train[:2]", mapping=MAPPING)
    assert [edit.target for edit in loaded] == ["answer 0", "answer 1"]
    assert loaded[1].source == f"{tmp_path / 'facts'} row 1"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_data_sets_that_cannot_be_loaded(tmp_path: Path, split: str) -> None:
    datasets = pytest.importorskip("datasets")
    if split == "validation":
        datasets.Dataset.from_list(ROWS).to_parquet(str(tmp_path / "facts" / "train.parquet"))
    with pytest.raises(ConfigError, match=f"facts' .split '{split}'.* cannot be loaded"):
        EditSet.from_dataset(str(tmp_path / "facts"), split=split, mapping=MAPPING)
