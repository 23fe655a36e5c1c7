"""`hf-edit apply` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hf_edit.api as api
from hf_edit.packs.pack import EditPack
from tests.cli.conftest import Command, failed


EDITS = [
    {"id": "lamp", "prompt": "Who made the lamp?", "target": "A fox made it."},
    {"id": "tea", "prompt": [{"role": "user", "content": "What is tea?"}], "target": "Hot water."},
]
QUICK = {
    "max_evaluations": 2,
    "statistics": {"tokens": 256, "length": 64, "batch": 4, "conversations": 4, "answer_tokens": 4},
}


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    path = tmp_path / "edits.jsonl"
    path.write_text("".join(json.dumps(edit) + "\n" for edit in EDITS))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "quick.json"
    path.write_text(json.dumps(QUICK))
    return path


@pytest.fixture
def arguments(base: Path, edits: Path, config: Path, tmp_path: Path) -> list[Any]:
    return [
        "apply",
        "--method",
        "anyedit",
        "--model",
        base,
        "--edits",
        edits,
        "--out",
        tmp_path / "pack",
        "--config",
        config,
    ]


def test_apply_saves_a_pack_and_shows_the_answers(hf_edit: Command, arguments: list[Any], tmp_path: Path) -> None:
    result = hf_edit(*arguments, "--seed", "3", "--set", "window=5", "--format", "chat", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    for text in ("before", "after", "exact", "Who made the lamp?", "What is tea?", str(tmp_path / "pack"), "rank"):
        assert text in result.stdout
    assert "targets" in result.stderr
    assert "note: 2 of 2 edits have a chunk whose loss stayed above 0.5" in result.stderr
    pack = EditPack.from_pretrained(tmp_path / "pack")
    assert pack.edits.ids == ("lamp", "tea")
    assert pack.manifest.seed == 3
    assert pack.manifest.method.config["window"] == 5 and pack.manifest.method.config["format"] == "chat"
    assert not (tmp_path / ".pack.resume").exists()


def test_apply_json_is_one_document(hf_edit: Command, arguments: list[Any], tmp_path: Path) -> None:
    result = hf_edit(*arguments, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["pack"] == str(tmp_path / "pack")
    assert document["rank"] >= 2 and document["bytes"] > 0 and document["seconds"] >= 0
    assert document["modules"] == ["model.layers.2.mlp.down_proj"]
    assert [edit["id"] for edit in document["edits"]] == ["lamp", "tea"]
    assert all({"target", "before", "after", "exact"} <= set(edit) for edit in document["edits"])


def test_earlier_packs_stay_attached(hf_edit: Command, arguments: list[Any], tmp_path: Path) -> None:
    """The second pack is computed, and asked, on top of the first."""
    assert hf_edit(*arguments, "--json").exit_code == 0
    later = tmp_path / "later.jsonl"
    later.write_text(json.dumps({"id": "stone", "prompt": "Who cut the stone?", "target": "Nobody did."}))
    options = ["--edits", later, "--out", tmp_path / "later", "--json"]
    document = json.loads(hf_edit(*arguments, *options, "--earlier", tmp_path / "pack").stdout)
    alone = json.loads(hf_edit(*arguments, *options).stdout)
    assert [edit["id"] for edit in document["edits"]] == ["stone"]
    assert document["edits"][0]["before"] != alone["edits"][0]["before"]
    assert EditPack.from_pretrained(tmp_path / "later").edits.ids == ("stone",)
    again = ("--out", tmp_path / "again", "--seed", "5", "--no-answers")  # whose first edit has the same id
    assert hf_edit(*arguments, *again).exit_code == 0
    same = ("--earlier", tmp_path / "pack", "--earlier", tmp_path / "again")
    assert hf_edit(*arguments, "--out", tmp_path / "third", *same).exit_code == 0
    result = hf_edit(*arguments, "--out", tmp_path / "none", "--earlier", tmp_path / "nothing")
    assert result.exit_code == 2 and "fix:" in result.stderr


def test_memory_may_be_bounded(hf_edit: Command, arguments: list[Any]) -> None:
    options = ["--no-answers", "--json"]
    taken = json.loads(hf_edit(*arguments, *options, "--memory", "1GB").stdout)["peak_memory"]
    assert 0 < taken < 10**9
    result = hf_edit(*arguments, *options, "--memory", "10KB")
    assert result.exit_code == 2 and "the memory budget is 10KB" in result.stderr and "fix: " in result.stderr
    result = hf_edit(*arguments, *options, "--memory", "plenty")
    assert result.exit_code == 2 and "'plenty' is no amount of memory" in result.stderr


def test_the_answers_can_be_left_out(hf_edit: Command, arguments: list[Any]) -> None:
    document = json.loads(hf_edit(*arguments, "--no-answers", "--json", "--limit", "1").stdout)
    assert document["edits"] == [{"id": "lamp", "target": "A fox made it."}]


def test_an_interrupted_run_keeps_what_it_had_and_is_told_to_go_on(
    hf_edit: Command, arguments: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, resume_dir: Path, **__: Any) -> None:
        resume_dir.mkdir()
        (resume_dir / "finished").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "edit", interrupted)
    result = hf_edit(*arguments)
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr
    assert (tmp_path / ".pack.resume" / "finished").exists()
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "edits.jsonl:3"),
        ('{"prompt": "", "target": "x"}', "edits.jsonl:3"),
        ('{"prompt": "x", "target": " "}', "edits.jsonl:3"),
        ('{"prompt": "x", "target": "x"}', "edits.jsonl:3"),
        ('{"prompt": "x", "target": "y", "id": "tea"}', "tea"),
        ('{"prompt": "Who made the lamp?", "target": "A dog."}', "A dog."),
        ('{"prompt": "x", "target": "y", "colour": "red"}', "colour"),
    ],
)
def test_edits_that_cannot_be_taught(
    hf_edit: Command, arguments: list[Any], edits: Path, tmp_path: Path, line: str, said: str
) -> None:
    edits.write_text(edits.read_text() + line + "\n")
    failed(hf_edit(*arguments), said)
    assert not (tmp_path / "pack").exists()


def test_a_target_longer_than_the_context(hf_edit: Command, arguments: list[Any], edits: Path) -> None:
    edits.write_text(json.dumps({"id": "long", "prompt": "x", "target": "word " * 300}) + "\n")
    failed(hf_edit(*arguments), "long", "256")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "magic"], "magic"),
        (["--edits-format", "csv"], "csv"),
        (["--format", "poem"], "poem"),
        (["--backend", "guess"], "guess"),
        (["--set", "window"], "window"),
        (["--set", "windw=3"], "window"),
        (["--set", "window=0"], "window = 0"),
        (["--set", "layers=[9]"], "9"),
        (["--set", "statistics.tokens=many"], "tokens"),
        (["--config", "none.json"], "none.json"),
        (["--dtype", "float8"], "float8"),
        (["--device", "abacus"], "abacus"),
        (["--edits", "none.jsonl"], "none.jsonl"),
        (["--model", "./none"], "none"),
        (["--model", "none.gguf"], "none.gguf"),
        (["--seed", "-1"], "seed = -1"),
    ],
)
def test_options_that_are_wrong(
    hf_edit: Command, arguments: list[Any], tmp_path: Path, options: list[str], said: str
) -> None:
    failed(hf_edit(*arguments, *options), said)
    assert not (tmp_path / "pack").exists()


def test_a_place_that_is_taken_is_found_before_anything_is_computed(
    hf_edit: Command, arguments: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "thesis.txt").write_text("precious")
    monkeypatch.delattr(api, "edit")
    failed(hf_edit(*arguments), "thesis.txt")
    assert (tmp_path / "pack" / "thesis.txt").read_text() == "precious"
