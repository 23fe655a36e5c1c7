"""What the formats know beside their edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_edit.datasets.formats import FORMATS, read_cases
from hf_edit.edits import EditSet, Probe
from hf_edit.errors import ConfigError, HfEditError
from tests.datasets.published import published, written
from tests.datasets.test_counterfact import RECORD as COUNTERFACT
from tests.datasets.test_mquake import RECORD as MQUAKE
from tests.datasets.test_mquake import REWRITE
from tests.datasets.test_zsre import RECORD as ZSRE


WHOLE = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The twin city of {} is",
        "subject": "Lower Mill",
        "target_new": {"str": "Upper Mill"},
        "target_true": {"str": "Old Mill"},
    },
    "paraphrase_prompts": ["Lower Mill is twinned with", "Lower Mill's twin is"],
    "neighborhood_prompts": ["The twin city of Red Mill is"],
}
SHORT = {**REWRITE, "fact_new": "Odo Lamm did.", "target_new": {"str": "Odo Lamm"}, "target_true": {"str": "Nobody"}}


def test_zsre_as_malmen_writes_it(tmp_path: Path) -> None:
    record = {key: ZSRE[key] for key in ("src", "rephrase", "loc", "loc_ans")} | {"ans": "Norland"}
    (edit,) = EditSet.from_zsre(written(tmp_path, record))
    assert (edit.target, edit.subject) == ("Norland", None)


def test_zsre_knows_other_right_answers(tmp_path: Path) -> None:
    (case,) = read_cases(written(tmp_path, ZSRE), "zsre")
    assert case.aliases == {"Norland": ["the Kingdom of Norland"]}


def test_counterfact_knows_old_answers_in_both_forms(tmp_path: Path) -> None:
    part, whole = read_cases(written(tmp_path, COUNTERFACT, {**WHOLE, "case_id": 8}), "counterfact")[:1] + read_cases(
        written(tmp_path, WHOLE), "counterfact"
    )
    assert part.old == whole.old == "Old Mill"
    assert whole.edit.prompt == part.edit.prompt
    assert len(whole.edit.paraphrases) == 2
    assert whole.edit.locality == (Probe("The twin city of Red Mill is", "Old Mill"),)


def test_mquake_as_short_facts_has_hops(tmp_path: Path) -> None:
    record = {**MQUAKE, "requested_rewrite": [SHORT], "new_answer_alias": ["typesetter"]}
    (case,) = read_cases(written(tmp_path, record), "mquake-facts")
    assert (case.edit.target, case.old, case.fact) == ("Odo Lamm", "Nobody", "Odo Lamm did.")
    assert case.edit.portability == ()
    assert case.hops == [(question, ("printer", "typesetter")) for question in MQUAKE["questions"]]
    (two,) = read_cases(written(tmp_path, {**record, "requested_rewrite": [SHORT, SHORT]}), "mquake-facts")
    assert two.hops == []


@pytest.mark.parametrize("layout", FORMATS)
def test_a_limit_below_one_is_told(tmp_path: Path, layout: str) -> None:
    with pytest.raises(ConfigError, match="limit of edits is -1"):
        read_cases(tmp_path / "never opened", layout, limit=-1)


def test_the_limit_holds_and_an_unknown_layout_is_told(tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    path.write_text('{"prompt": "a?", "target": "b"}\n{"prompt": "c?", "target": "d"}\n', encoding="utf-8")
    assert [case.edit.prompt for case in read_cases(path, "jsonl", 1)] == ["a?"]
    with pytest.raises(ConfigError, match="'csv' is unknown"):
        read_cases(path, "csv")


@pytest.mark.parametrize("layout", FORMATS)
def test_a_missing_file_of_any_layout(tmp_path: Path, layout: str) -> None:
    with pytest.raises(HfEditError, match=r"none\.json"):
        read_cases(tmp_path / "none.json", layout, 3)


def test_published_short_facts() -> None:
    cases: list[Any] = read_cases(published("mquake_cf.json"), "mquake-facts")
    assert {len(case.hops) for case in cases} == {0, 3}
    assert all(len(case.edit.target.split()) < 12 and case.old for case in cases)
