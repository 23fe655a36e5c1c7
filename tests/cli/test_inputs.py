"""Edits and settings as the command line reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_edit.cli.inputs import read_edits, read_settings
from hf_edit.errors import ConfigError, HfEditError


def test_later_sources_of_settings_win(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('window = 10\nclamp = 0.5\nseed = 1\n[statistics]\nlength = 64\ntext = "self"\n')
    settings = read_settings(
        file, ["clamp=0.25", "statistics.length = 32", "layers=[1, 2]", "seed=2"], {"seed": 3, "backend": None}
    )
    assert settings == {
        "window": 10,
        "clamp": 0.25,
        "seed": 3,
        "layers": [1, 2],
        "statistics": {"length": 32, "text": "self"},
    }


def test_values_are_json_or_else_text() -> None:
    settings = read_settings(None, ["a=1", "b=true", "c=null", "d=chat", "e=x=y", 'f="1"'], {})
    assert settings == {"a": 1, "b": True, "c": None, "d": "chat", "e": "x=y", "f": "1"}


@pytest.mark.parametrize("assignment", ["window", "=3", ""])
def test_what_is_no_assignment(assignment: str) -> None:
    with pytest.raises(ConfigError, match="no assignment"):
        read_settings(None, [assignment], {})


def test_a_setting_without_settings_inside() -> None:
    with pytest.raises(ConfigError, match="'window' in 'window.size'"):
        read_settings(None, ["window=3", "window.size=4"], {})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("s.yaml", b"a: 1", "ending '.yaml'"),
        ("s.json", b"{", "cannot be read"),
        ("s.json", b"[1]", "holds a list"),
        ("s.json", b"\xff", "cannot be read"),
        ("s.toml", b"= 3", "cannot be read"),
        ("s.toml", None, "no config file"),
    ],
)
def test_config_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_settings(file, [], {})


def test_edits_can_be_limited(tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    file.write_text("".join(f'{{"prompt": "q{i}", "target": "a{i}"}}\n' for i in range(5)))
    assert [edit.prompt for edit in read_edits(file, "jsonl", 2)] == ["q0", "q1"]
    assert len(read_edits(file, "jsonl", None)) == 5


def test_an_unknown_layout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'csv' is unknown"):
        read_edits(tmp_path, "csv", None)


@pytest.mark.parametrize("layout", ["jsonl", "unke", "editeverything", "zsre", "counterfact", "mquake"])
def test_a_missing_file_of_any_layout(tmp_path: Path, layout: str) -> None:
    with pytest.raises(HfEditError, match=r"none\.json"):
        read_edits(tmp_path / "none.json", layout, 3)
