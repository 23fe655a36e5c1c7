"""`hf-edit stats collect` and `hf-edit stats show`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hf_edit as package
from hf_edit.statistics import store
from tests.cli.conftest import Command, failed
from tests.tiny import CORPUS, tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_EDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(CORPUS * 2), encoding="utf-8")
    return path


def test_what_is_collected_is_shown(hf_edit: Command, base: Path, text: Path, cache: Path) -> None:
    options = ("--model", base, "--text", text, "--tokens", 300, "--conversations", 0, "--layers", "3,1")
    document = json.loads(hf_edit("stats", "collect", *options, "--json").stdout)
    assert [entry["linear"] for entry in document["statistics"]] == [f"model.layers.{i}.mlp.down_proj" for i in (1, 3)]
    for entry in document["statistics"]:
        assert entry["source"] == str(text) and entry["tokens"]["text"] >= 300
        assert Path(entry["file"]).is_relative_to(cache) and Path(entry["file"]).stat().st_size == entry["bytes"]
    assert json.loads(hf_edit("stats", "show", "--model", base, "--json").stdout) == document

    shown = hf_edit("stats", "show", "--model", base).stdout
    assert "model.layers.1.mlp.down_proj" in shown and f"text {document['statistics'][0]['tokens']['text']:,}" in shown


def test_all_layers(hf_edit: Command, base: Path, text: Path) -> None:
    options = ("--model", base, "--text", text, "--conversations", 0, "--layers", "all")
    shown = hf_edit("stats", "collect", *options).stdout
    assert all(f"model.layers.{layer}.mlp.down_proj" in shown for layer in range(4))


@pytest.mark.filterwarnings("ignore:.*loss stayed above:hf_edit.errors.HfEditWarning")
def test_edits_with_the_same_settings_find_them(hf_edit: Command, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--model", base, "--tokens", 250, "--conversations", 2, "--seed", 3)
    document = json.loads(hf_edit("stats", "collect", *options, "--json").stdout)
    assert [entry["linear"] for entry in document["statistics"]] == [f"model.layers.{i}.mlp.down_proj" for i in (2, 3)]
    assert set(document["statistics"][0]["tokens"]) == {"text", "chat", "prompt", "answer"}

    monkeypatch.setattr(store, "collect", None)  # fails if it is called
    config = package.AnyEditConfig.from_mapping(
        {"max_evaluations": 1, "seed": 3, "statistics": {"tokens": 250, "conversations": 2}}
    )
    package.edit(tiny_model(), tiny_tokenizer(), [{"prompt": "Who?", "target": "Me."}], config)


def test_other_settings_stand_beside_them(hf_edit: Command, base: Path, text: Path) -> None:
    for tokens in (250, 300):
        options = ("--text", text, "--tokens", tokens, "--conversations", 0, "--format", "plain")
        hf_edit("stats", "collect", "--model", base, *options)
    document = json.loads(hf_edit("stats", "show", "--model", base, "--json").stdout)
    edited = [f"model.layers.{layer}.mlp.down_proj" for layer in (2, 3)]
    assert [entry["linear"] for entry in document["statistics"]] == edited * 2
    assert len({entry["file"] for entry in document["statistics"]}) == 4


def test_shards_are_merged(hf_edit: Command, base: Path) -> None:
    options = ("--model", base, "--tokens", 8256, "--conversations", 0, "--layers", "1", "--json")
    folders = []
    for shard in ("1/2", "2/2"):
        document = json.loads(hf_edit("stats", "collect", *options, "--shard", shard).stdout)
        folders.append(Path(document["statistics"][0]["file"]).parent)
    assert json.loads(hf_edit("stats", "show", "--model", base, "--json").stdout)["statistics"] == []
    failed(hf_edit("stats", "merge", folders[0]), "1 of 2 shards are missing", "--shard 2/2")
    assert "2 shard(s), 1 map(s)" in hf_edit("stats", "merge", *folders).stdout
    (file,) = json.loads(hf_edit("stats", "merge", *folders, "--json").stdout)["files"]
    (entry,) = json.loads(hf_edit("stats", "show", "--model", base, "--json").stdout)["statistics"]
    assert entry["file"] == file
    (whole,) = json.loads(hf_edit("stats", "collect", *options).stdout)["statistics"]
    assert whole == entry  # found, not collected


def test_compressed_statistics_say_so(hf_edit: Command, base: Path, text: Path) -> None:
    options = ("--model", base, "--text", text, "--conversations", 0, "--layers", "1", "--compress", 4)
    (entry,) = json.loads(hf_edit("stats", "collect", *options, "--json").stdout)["statistics"]
    assert 0 < entry["compression_errors"]["text"] < 1
    assert json.loads(hf_edit("stats", "show", "--model", base, "--json").stdout)["statistics"] == [entry]
    assert f"error {entry['compression_errors']['text']:.1%}" in hf_edit("stats", "show", "--model", base).stdout


def test_an_empty_cache(hf_edit: Command, base: Path) -> None:
    assert "holds no statistics" in hf_edit("stats", "show", "--model", base).stdout
    assert json.loads(hf_edit("stats", "show", "--model", base, "--json").stdout)["statistics"] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--layers", "4"), "Layer 4 does not exist: the model has 4 blocks"),
        (("--layers", "-1"), "Layer -1 does not exist"),
        (("--layers", "some"), "'some' are no numbers"),
        (("--layers", ""), "'' are no numbers"),
        (("--tokens", "0"), "tokens = 0 is below 1"),
        (("--text", "no such file"), "'no such file' cannot be read"),
        (("--format", "poem"), "no prompt format 'poem'"),
        (("--shard", "3/2"), "There is no shard 3/2"),
        (("--shard", "half"), "'half' is no shard"),
        (("--compress", "0"), "rank 0"),
        (("--compress", "much"), "'much' is neither a rank nor a share"),
        (("--compress", "4", "--shard", "1/2"), "1/2 cannot be compressed"),
    ],
)
def test_what_cannot_be_collected(hf_edit: Command, base: Path, options: tuple[str, ...], said: str) -> None:
    failed(hf_edit("stats", "collect", "--model", base, *options), said)


def test_a_damaged_file(hf_edit: Command, base: Path, text: Path) -> None:
    options = ("--model", base, "--text", text, "--tokens", 250, "--conversations", 0)
    document = json.loads(hf_edit("stats", "collect", *options, "--json").stdout)
    file = Path(document["statistics"][0]["file"])
    file.unlink()
    file.write_bytes(b"damaged")
    failed(hf_edit("stats", "show", "--model", base), "cannot be read", str(file))
    failed(hf_edit("stats", "collect", *options), "cannot be read", str(file))


def test_help(hf_edit: Command) -> None:
    assert "stats" in hf_edit("--help").stdout
    for words in (("stats",), ("stats", "collect"), ("stats", "show"), ("stats", "merge")):
        assert f"hf-edit {' '.join(words)}" in hf_edit(*words, "-h").stdout
