"""`hf-edit conflicts` and `hf-edit diff`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hf_edit.edits import Edit, EditSet
from tests.cli.conftest import Command, failed
from tests.packs.make import make_pack
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two packs of the base that answer a question differently."""
    root = tmp_path_factory.mktemp("two")
    for seed, (name, answer) in enumerate({"first": "Ada [she].", "second": "Bo."}.items()):
        edits = EditSet([Edit("Who runs [Osk]?", answer, id=f"{name}-runs"), Edit(f"Is {name} far?", "No.", id=name)])
        make_pack(tiny_model(), edits=edits, seed=seed).save_pretrained(root / name)
    return root / "first", root / "second"


def test_conflicts_as_a_table(hf_edit: Command, two: tuple[Path, Path]) -> None:
    result = hf_edit("conflicts", *two)
    assert result.exit_code == 0
    for text in (
        "question",
        "first-runs",
        "second-runs",
        "Ada [she].",
        "model.layers.1.mlp.down_proj",
        "conflicts  1",
    ):
        assert text in result.stdout
    assert "kept beside" not in result.stdout


def test_conflicts_as_json(hf_edit: Command, two: tuple[Path, Path]) -> None:
    result = hf_edit("conflicts", *two, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["packs"] == ["first", "second"] and document["conflicts"] == 1
    (finding,) = document["findings"]
    assert (finding["kind"], finding["score"]) == ("question", 1)
    assert finding["second"] == {"pack": 1, "name": "second", "id": "second-runs"}
    assert document["model"] is None and document["interference"] is None
    assert hf_edit("conflicts", *two, "--json").stdout == result.stdout


def test_conflicts_on_a_model(hf_edit: Command, base: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "map.png"
    result = hf_edit("conflicts", *two, "--model", base, "--picture", picture)
    assert result.exit_code == 0, result.output
    for text in ("right alone", "kept beside second", "none right alone", "at last token", str(picture)):
        assert text in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_compared(hf_edit: Command, two: tuple[Path, Path], tmp_path: Path) -> None:
    failed(hf_edit("conflicts", two[0]), "1 is given")
    failed(hf_edit("conflicts", two[0], tmp_path / "none"), "none")
    failed(hf_edit("conflicts", *two, "--picture", tmp_path / "no" / "map.png"), "cannot be written")
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    result = hf_edit("conflicts", *two, "--model", tmp_path / "other")
    assert result.exit_code == 2 and "other values" in result.stderr


def test_a_picture_without_matplotlib_fails_at_once(
    hf_edit: Command, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    failed(hf_edit("conflicts", *two, "--picture", tmp_path / "map.png"), "hf-edit[plots]")


def test_diff_as_a_table(hf_edit: Command, two: tuple[Path, Path]) -> None:
    result = hf_edit("diff", *two)
    assert result.exit_code == 0
    for text in ("added", "removed", "changed: id, target", "Ada [she].", "Bo.", "seed", "differ"):
        assert text in result.stdout
    same = hf_edit("diff", two[0], two[0]).stdout
    assert "the same" in same and "0.00%" in same and "added" not in same


def test_diff_as_json(hf_edit: Command, two: tuple[Path, Path], tmp_path: Path) -> None:
    document = json.loads(hf_edit("diff", *two, "--json").stdout)
    assert document["same"] is False and [edit["id"] for edit in document["added"]] == ["second"]
    assert document["changed"][0]["fields"] == ["id", "target"]
    assert document["settings"] == {"seed": {"before": 0, "after": 1}}
    assert all(0 < module["relative"] <= 2 for module in document["modules"].values())
    failed(hf_edit("diff", two[0], tmp_path / "none"), "none")
