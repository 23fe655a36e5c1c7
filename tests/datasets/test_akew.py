from __future__ import annotations

from pathlib import Path

from hf_edit.datasets.akew import SUB_QUESTIONS
from hf_edit.datasets.formats import read_cases
from hf_edit.edits import EditSet, Probe
from tests.datasets.published import written


REWRITE = {
    "prompt": "{} is twinned with",
    "prompt_full": "Which town is Lower Mill twinned with? Lower Mill is twinned with",
    "question": "Which town is Lower Mill twinned with?",
    "subject": "Lower Mill",
    "target_new": {"str": "Upper Mill", "id": "Q1"},
    "target_true": {"str": "Old Mill", "id": "Q2"},
    "fact_new": "Lower Mill is twinned with Upper Mill.",
    "fact_new_uns": "Upper Mill, a village of millers, has been the twin of Lower Mill since both had a bridge.",
    "unsfact_triplets_GPT": [{"subject": "Lower Mill", "prompt": "{} has", "target": f"bridge {i}"} for i in range(7)],
}
COUNTERFACT = {
    "case_id": 4,
    "requested_rewrite": REWRITE,
    "paraphrase_prompts": ["It rained. Lower Mill has the twin"],
    "neighborhood_prompts": ["Red Mill is twinned with"],
}


def test_a_counterfact_record_becomes_an_edit(tmp_path: Path) -> None:
    (edit,) = EditSet.from_akew(written(tmp_path, COUNTERFACT))
    assert (edit.prompt, edit.target, edit.subject) == (REWRITE["prompt_full"], REWRITE["fact_new_uns"], "Lower Mill")
    assert edit.paraphrases == ("It rained. Lower Mill has the twin",)
    assert edit.locality == (Probe("Red Mill is twinned with", "Old Mill"),)
    assert edit.portability == tuple(Probe("Lower Mill has", f"bridge {i}") for i in range(SUB_QUESTIONS))
    assert (edit.id, edit.source) == ("akew-4", "AKEW case 4")


def test_a_wikiupdate_record_has_a_question_alone(tmp_path: Path) -> None:
    rewrite = {key: value for key, value in REWRITE.items() if key != "prompt_full"}
    (case,) = read_cases(written(tmp_path, {"case_id": 5, "requested_rewrite": rewrite}), "akew")
    assert case.edit.prompt == REWRITE["question"]
    assert (case.edit.paraphrases, case.edit.locality) == ((), ())
    assert case.fact == REWRITE["fact_new"]
