"""`hf-edit stack` and `hf-edit revert` on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_edit.edits import Edit, EditSet
from hf_edit.packs.pack import EditPack
from tests.cli.conftest import Command, failed
from tests.packs.make import make_pack, random_deltas
from tests.tiny import tiny_model


STATISTICS = {"tokens": 256, "length": 64, "batch": 4, "conversations": 4, "answer_tokens": 4}
pytestmark = pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning")


@pytest.fixture
def packs(tmp_path: Path) -> list[Path]:
    """Two packs; both answer what tea is, and differently."""
    paths = []
    for i, (question, answer) in enumerate((("Who made the lamp?", "A fox."), ("Where is Veldora?", "By the sea."))):
        edits = EditSet([Edit(question, answer, id=f"own{i}"), Edit("What is tea?", f"Leaf {i}.", id=f"tea{i}")])
        pack = make_pack(tiny_model(), deltas=random_deltas(tiny_model(), (2, 1), seed=i), edits=edits)
        pack.save_pretrained(tmp_path / f"pack{i}")
        paths.append(tmp_path / f"pack{i}")
    return paths


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "combine.json"
    path.write_text(json.dumps({"statistics": STATISTICS, "reverted_tokens": 4}))
    return path


def test_stack_then_revert(hf_edit: Command, packs: list[Path], base: Path, config: Path, tmp_path: Path) -> None:
    how = ("--model", base, "--config", config)
    result = hf_edit("stack", *packs, "--prefer", "2", "--out", tmp_path / "both", "--json", *how)
    assert result.exit_code == 0, result.output
    assert [edit["id"] for edit in json.loads(result.stdout)["edits"]] == ["own0", "own1", "tea1"]

    result = hf_edit("stack", *packs, "--prefer", "pack0", "--out", tmp_path / "other", "--json", "--no-answers", *how)
    assert [edit["id"] for edit in json.loads(result.stdout)["edits"]] == ["own0", "tea0", "own1"]

    result = hf_edit("revert", tmp_path / "both", "tea1", "--out", tmp_path / "less", "--json", *how)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [edit["id"] for edit in document["edits"]] == ["own0", "own1"]
    (gone,) = document["reverted"]
    assert gone["id"] == "tea1" and gone["as_before"] == (gone["before"] == gone["after"])
    less = EditPack.from_pretrained(tmp_path / "less")
    assert less.manifest.method.name == "revert"
    assert [parent["method"]["name"] for parent in less.manifest.parents] == ["stack"]

    told = hf_edit("revert", tmp_path / "both", "tea1", "--out", tmp_path / "less", *how)
    assert told.exit_code == 0 and "taken back" in told.stdout and "What is tea?" in told.stdout


def test_stack_as_a_sum(hf_edit: Command, packs: list[Path], base: Path, config: Path, tmp_path: Path) -> None:
    how = ("--model", base, "--config", config, "--no-answers", "--json")
    result = hf_edit("stack", packs[0], "--mode", "add", "--out", tmp_path / "sum", *how)
    assert result.exit_code == 0, result.output
    one, total = EditPack.from_pretrained(packs[0]), EditPack.from_pretrained(tmp_path / "sum")
    for name, delta in one.deltas.items():
        assert (total.deltas[name].dense() - delta.dense()).norm() <= 1e-5 * delta.norm()


def test_what_cannot_be_combined(
    hf_edit: Command, packs: list[Path], base: Path, config: Path, tmp_path: Path
) -> None:
    how = ("--model", base, "--config", config, "--out", tmp_path / "out")
    result = hf_edit("stack", *packs, *how)
    assert result.exit_code == 2 and "two answers" in result.stderr and "prefer" in result.stderr
    failed(hf_edit("stack", *packs, "--prefer", "9", *how), "--prefer 9 is none of 2 packs", "from 1 to 2")
    failed(hf_edit("stack", *packs, "--prefer", "mine", *how), "'mine'", "order, newest, or one of pack0, pack1")
    failed(hf_edit("stack", *packs, "--on-conflict", "sing", *how), "no on_conflict 'sing'")
    failed(hf_edit("stack", *packs, "--mode", "mix", *how), "'mix'")
    failed(hf_edit("revert", packs[0], "none", *how), "'none'")
    assert not (tmp_path / "out").exists()
