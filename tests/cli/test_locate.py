"""`hf-edit locate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hf_edit.methods.locating.effects import CLASSES
from tests.cli.conftest import Command, failed


FAST = ("--samples", 1, "--answer-tokens", 2)


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    path = tmp_path / "edits.jsonl"
    records = [
        {"id": "fuji", "prompt": "Where is Mount Fuji?", "target": "Here.", "subject": "Mount Fuji"},
        {"id": "hamlet", "prompt": "Who wrote [Hamlet]?", "target": "Nobody."},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_json(hf_edit: Command, base: Path, edits: Path) -> None:
    command = ("locate", "--model", base, "--edits", edits, "--count", 2, *FAST, "--json")
    result = hf_edit(*command)
    document = json.loads(result.stdout)
    assert document["model"] == str(base)
    assert list(document["mean"]) == list(CLASSES)
    (first, second), means = document["proposed"], document["mean"]["last token"]
    assert second == first + 1
    assert means[first] + means[second] == max(a + b for a, b in zip(means, means[1:], strict=False))
    assert [edit["id"] for edit in document["edits"]] == ["fuji", "hamlet"]
    assert [edit["subject"] for edit in document["edits"]] == ["Mount Fuji", None]
    assert hf_edit(*command).stdout == result.stdout


def test_tables(hf_edit: Command, base: Path, edits: Path) -> None:
    shown = hf_edit("locate", "--model", base, "--edits", edits, *FAST, "--token", "last subject token").stdout
    assert "Where is Mount Fuji?" in shown and "Who wrote [Hamlet]?" in shown
    for name in CLASSES:
        assert name in shown
    (proposed,) = [line.split()[1] for line in shown.splitlines() if line.startswith("proposed")]
    assert f"{proposed}*" in shown and shown.count("*") == 2


def test_a_class_without_tokens_is_left_empty(hf_edit: Command, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text('{"prompt": "a", "target": "b", "subject": "a"}\n', encoding="utf-8")
    command = ("locate", "--model", base, "--edits", path, "--format", "plain", *FAST)
    assert "nan" not in hf_edit(*command).stdout
    result = hf_edit(*command, "--token", "last token")
    assert result.exit_code == 2
    assert "error: No token traced is of the class 'last token'" in result.stderr


def test_a_picture(hf_edit: Command, base: Path, edits: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "map.png"
    shown = hf_edit("locate", "--model", base, "--edits", edits, "--limit", 1, *FAST, "--picture", path).stdout
    assert str(path) in shown and path.read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_matplotlib_fails_at_once(
    hf_edit: Command, edits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = hf_edit("locate", "--model", tmp_path / "none", "--edits", edits, "--picture", tmp_path / "map.png")
    failed(result, "matplotlib", "hf-edit[plots]")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--count", 9), "9 layers were asked for"),
        (("--token", "verb"), "no class of tokens 'verb'"),
        (("--restored", "all"), "'all' cannot be restored"),
        (("--noise", 0), "noise = 0 is not above 0"),
        (("--edits-format", "xml"), "'xml' is unknown"),
    ],
)
def test_what_cannot_be_traced(hf_edit: Command, base: Path, edits: Path, options: tuple[str, ...], said: str) -> None:
    failed(hf_edit("locate", "--model", base, "--edits", edits, "--limit", 1, *FAST, *options), said)


def test_help(hf_edit: Command) -> None:
    assert "locate" in hf_edit("--help").stdout
    assert "hf-edit locate" in hf_edit("locate", "-h").stdout


def test_a_picture_with_no_folder_to_lie_in_is_refused_at_once(hf_edit: Command, edits: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "none" / "map.png"
    failed(
        hf_edit("locate", "--model", tmp_path / "none", "--edits", edits, "--picture", picture), "cannot be written"
    )
