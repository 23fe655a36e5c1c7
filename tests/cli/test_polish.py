"""`hf-edit polish` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_edit.packs.pack import EditPack
from tests.cli.conftest import Command, failed


STATISTICS = {"tokens": 256, "length": 64, "batch": 4, "conversations": 4, "answer_tokens": 4}
pytestmark = pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning")


@pytest.fixture
def pack(hf_edit: Command, base: Path, tmp_path: Path) -> Path:
    edits, config = tmp_path / "edits.jsonl", tmp_path / "quick.json"
    edits.write_text(json.dumps({"id": "lamp", "prompt": "Who made the lamp?", "target": "A fox."}) + "\n")
    config.write_text(json.dumps({"max_evaluations": 2, "statistics": STATISTICS}))
    options = ("--model", base, "--edits", edits, "--out", tmp_path / "pack", "--config", config, "--no-answers")
    assert hf_edit("apply", "--method", "anyedit", *options).exit_code == 0
    return tmp_path / "pack"


def test_polish_refines_a_pack(hf_edit: Command, pack: Path, base: Path, tmp_path: Path) -> None:
    config = tmp_path / "polish.json"
    config.write_text(json.dumps({"training": {"max_steps": 3}, "strangers": 2, "statistics": STATISTICS}))
    out = tmp_path / "refined"
    result = hf_edit("polish", pack, "--model", base, "--out", out, "--config", config, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [edit["id"] for edit in document["edits"]] == ["lamp"] and document["pack"] == str(out)
    before, after = EditPack.from_pretrained(pack), EditPack.from_pretrained(out)
    assert after.edits == before.edits and after.manifest.method.name == "polish"
    assert after.manifest.parents[0]["method"]["name"] == "anyedit"
    assert after.manifest.prompt_format == before.manifest.prompt_format
    assert set(before.deltas) < set(after.deltas)


def test_earlier_packs_stay_attached(hf_edit: Command, pack: Path, base: Path, tmp_path: Path) -> None:
    edits, quick = tmp_path / "other.jsonl", {"training.max_steps": 1, "strangers": 0, "statistics.tokens": 256}
    edits.write_text(json.dumps({"id": "fox", "prompt": "Who is the fox?", "target": "A dog."}) + "\n")
    config = tmp_path / "quick.json"
    first = ("--model", base, "--edits", edits, "--out", tmp_path / "fox", "--config", config, "--no-answers")
    assert hf_edit("apply", "--method", "anyedit", *first).exit_code == 0
    options = [option for key, value in quick.items() for option in ("--set", f"{key}={value}")]
    polish = ("polish", pack, "--model", base, "--out", tmp_path / "refined", *options)
    result = hf_edit(*polish, "--earlier", tmp_path / "fox")
    assert result.exit_code == 0, result.output
    fox, refined = (EditPack.from_pretrained(tmp_path / name).manifest for name in ("fox", "refined"))
    assert refined.earlier == (fox.identity(),)
    failed(hf_edit(*polish, "--earlier", tmp_path / "nothing"), "nothing")


def test_what_cannot_be_polished(hf_edit: Command, pack: Path, base: Path, tmp_path: Path) -> None:
    failed(hf_edit("polish", tmp_path / "none", "--model", base, "--out", tmp_path / "o"), "none")
    failed(hf_edit("polish", pack, "--model", base, "--out", tmp_path / "o", "--set", "rank=0"), "rank", "0")
