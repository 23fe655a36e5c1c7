"""`hf-edit evaluate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hf_edit.evaluation.config import unrelated_prompts
from hf_edit.hub.card import BEGIN, END
from hf_edit.packs.pack import EditPack
from tests.cli.conftest import Command, failed
from tests.datasets.published import written
from tests.datasets.test_formats import SHORT
from tests.datasets.test_mquake import RECORD as MQUAKE


QUICK = ("--set", "max_new_tokens=8", "--set", "probe_tokens=6", "--set", "drift_tokens=6")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few unrelated questions."""
    monkeypatch.setattr("hf_edit.evaluation.config.unrelated_prompts", lambda: unrelated_prompts()[:2])


def test_a_table_before_and_after(hf_edit: Command, base: Path, pack: Path) -> None:
    result = hf_edit("evaluate", pack, "--model", base, "--only", "reliability, teacher_forced,", *QUICK)
    assert result.exit_code == 0, result.output
    for text in ("reliability.exact", "free generation", "teacher_forced.es", "teacher-forced", "before", "after"):
        assert text in result.stdout
    assert "unrelated" not in result.stdout and "cut off at 8 tokens" in result.stdout


def test_json_and_a_file_say_the_same(hf_edit: Command, base: Path, pack: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    result = hf_edit("evaluate", pack, "--model", base, "--only", "reliability", *QUICK, "--out", out, "--json")
    document = json.loads(result.stdout)
    assert document == json.loads(out.read_text("utf-8"))
    assert [metric["name"] for metric in document["metrics"]][0] == "reliability.exact"
    assert document["generations"][0]["edit"] == "lamp"


def test_saved_into_the_pack_and_onto_its_card(hf_edit: Command, base: Path, pack: Path, tmp_path: Path) -> None:
    mine = tmp_path / "pack"
    shutil.copytree(pack, mine)
    (mine / "model.sig").write_text("{}")
    result = hf_edit("evaluate", mine, "--model", base, "--only", "reliability", *QUICK, "--save")
    assert result.exit_code == 0 and "sign it again" in result.stderr
    saved = EditPack.from_pretrained(mine)
    assert saved.evaluation is not None and saved.evaluation["reliability.exact"].after is not None
    assert "`reliability.exact`" in (mine / "README.md").read_text("utf-8")
    assert hf_edit("verify", mine, "--model", base).exit_code == 0
    for name in ("adapter_model.safetensors", "edits.jsonl"):
        assert (mine / name).read_bytes() == (pack / name).read_bytes()


def test_saving_keeps_what_the_owner_wrote_on_the_card(
    hf_edit: Command, base: Path, pack: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "pack"
    shutil.copytree(pack, mine)
    card = (mine / "README.md").read_text("utf-8").replace("---\n", "---\nlicense: mit\n", 1)
    card = card.replace(BEGIN, f"# My lamp\n\n{BEGIN}").replace(END, f"{END}\n\nAsk me.")
    (mine / "README.md").write_text(card, encoding="utf-8")
    for _ in range(2):
        result = hf_edit("evaluate", mine, "--model", base, "--only", "reliability", *QUICK, "--save")
        assert result.exit_code == 0, result.output
        card = (mine / "README.md").read_text("utf-8")
        assert all(card.count(text) == 1 for text in ("license: mit", "# My lamp", "Ask me.", "# Edit pack:"))
        assert "`reliability.exact`" in card and "model-index" in card
    (mine / "README.md").unlink()
    assert hf_edit("evaluate", mine, "--model", base, "--only", "reliability", *QUICK, "--save").exit_code == 0
    assert "`reliability.exact`" in (mine / "README.md").read_text("utf-8")


def test_a_folder_that_could_not_be_saved_into_is_refused_before_anything_is_asked(
    hf_edit: Command, base: Path, pack: Path, tmp_path: Path
) -> None:
    shutil.copytree(pack, tmp_path / "pack")
    (tmp_path / "pack" / ".cache").mkdir()
    failed(hf_edit("evaluate", tmp_path / "pack", "--model", tmp_path / "nowhere", "--save"), ".cache")


def test_only_some_edits_are_asked_and_not_saved_as_the_packs(
    hf_edit: Command, base: Path, pack: Path, tmp_path: Path
) -> None:
    edits = tmp_path / "edits.jsonl"
    edits.write_text('{"prompt": "Who?", "target": "Me."}')
    common = ("evaluate", pack, "--model", base, "--only", "reliability", *QUICK)
    document = json.loads(hf_edit(*common, "--limit", "1", "--json").stdout)
    assert document["protocol"]["edits"]["count"] == 1
    for options in (("--limit", "1"), ("--edits", edits)):
        failed(hf_edit(*common, *options, "--save"), "not the edits of the pack")
    failed(hf_edit(*common, "--out", tmp_path / "none" / "figures.json"), "cannot be written")
    shutil.copytree(pack, tmp_path / "pack")
    again = ("evaluate", tmp_path / "pack", "--model", base, *QUICK, "--save")
    hf_edit(*again, "--only", "reliability,teacher_forced")
    assert "teacher_forced.es" in hf_edit(*again, "--only", "reliability").stderr


def test_the_model_as_it_is_with_edits_of_a_file(hf_edit: Command, base: Path, tmp_path: Path) -> None:
    edits = tmp_path / "edits.jsonl"
    edits.write_text('{"prompt": "Who?", "target": "Me."}\n{"prompt": "Where?", "target": "Here."}\n')
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    given = ("--edits", edits, "--limit", 1, "--text", text, "--model", base, *QUICK)
    document = json.loads(hf_edit("evaluate", *given, "--json").stdout)
    assert document["pack"] is None and document["protocol"]["edits"]["count"] == 1
    assert "perplexity.text" in [metric["name"] for metric in document["metrics"]]
    shown = hf_edit("evaluate", *given).stdout
    assert "model" in shown and "after" not in shown


def test_old_answers_of_counterfact_and_of_a_file(hf_edit: Command, base: Path, tmp_path: Path) -> None:
    record = {
        "case_id": 7,
        "prompt": "The lamp is of",
        "target_new": "Oru",
        "subject": "The lamp",
        "ground_truth": "Vel",
        "rephrase_prompt": "It comes from",
        "locality_prompt": "The bridge is of",
        "locality_ground_truth": "Vel",
    }
    edits = tmp_path / "facts.json"
    edits.write_text(json.dumps([record]))
    arguments = ("--edits", edits, "--edits-format", "counterfact", "--model", base, "--set", "format=plain", "--json")
    document = json.loads(hf_edit("evaluate", *arguments, "--only", "success", *QUICK).stdout)
    by_name = {metric["name"]: metric for metric in document["metrics"]}
    assert by_name["success.neighbourhood"]["before"]["n"] == 1
    material = tmp_path / "material.json"
    material.write_text(json.dumps({"old_answers": {"counterfact-7": "Oru"}}))
    document = json.loads(hf_edit("evaluate", *arguments, "--only", "success", "--material", material, *QUICK).stdout)
    by_name = {metric["name"]: metric for metric in document["metrics"]}
    assert by_name["success.efficacy"]["before"]["value"] == 0.0  # no answer is likelier than itself


def test_what_the_data_knows_beside_its_edits_is_asked_as_well(hf_edit: Command, base: Path, tmp_path: Path) -> None:
    edits = written(tmp_path, {**MQUAKE, "requested_rewrite": [SHORT], "new_answer_alias": ["typesetter"]})
    arguments = ("--edits", edits, "--edits-format", "mquake-facts", "--model", base, "--only", "multi_hop,success")
    document = json.loads(hf_edit("evaluate", *arguments, "--json", *QUICK).stdout)
    hops = {one["prompt"]: one["accepted"] for one in document["generations"] if one["kind"] == "hop"}
    assert hops == dict.fromkeys(MQUAKE["questions"], ["printer", "typesetter"])
    assert "success.efficacy" in [metric["name"] for metric in document["metrics"]]


def test_mistakes(hf_edit: Command, base: Path, pack: Path, tmp_path: Path) -> None:
    failed(hf_edit("evaluate", pack, "--model", base, "--only", "nonsense"), "'nonsense'", "reliability")
    failed(hf_edit("evaluate", pack, "--model", base, "--only", ","), "--only ',' names nothing")
    failed(hf_edit("evaluate", "me/lamp", "--model", base, "--save"), "no folder", "pull")
    failed(hf_edit("evaluate", "--model", base), "neither a pack nor edits")
    wrong = tmp_path / "material.json"
    wrong.write_text('{"old": {}}')
    failed(hf_edit("evaluate", pack, "--model", base, "--material", wrong), "material.json", "'old'")
    failed(hf_edit("evaluate", pack, "--model", base, "--set", "probe_tokens=0"), "probe_tokens")
