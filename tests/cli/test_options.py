"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_edit.cli.options import EVALUATORS, replaceable
from hf_edit.errors import ConfigError
from hf_edit.evaluation import evaluators
from tests.cli.conftest import Command, failed


def test_a_folder_to_write_is_where_its_links_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("real")
    assert replaceable(Path("link")) == replaceable(Path("real/.")) == Path("real")
    assert replaceable(tmp_path / "link") == tmp_path / "real"
    (tmp_path / "real" / "inner").mkdir(parents=True)
    assert replaceable(Path("real/inner/..")) == Path("real")
    (tmp_path / "here").symlink_to(".")
    for folder in (".", "..", "here", "real/..", tmp_path):
        with pytest.raises(ConfigError, match="the folder that you are in"):
            replaceable(Path(folder))


@pytest.mark.parametrize(
    "command",
    [
        ["apply", "--model", "m", "--edits", "e"],
        ["train", "--model", "m", "--edits", "e"],
        ["merge", "p", "--model", "m"],
        ["unmerge", "m"],
        ["convert", "."],
        ["pull", "me/lamp"],
    ],
)
def test_the_folder_one_is_in_is_not_replaced(
    hf_edit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    failed(hf_edit(*command, "--out", "."), "the folder that you are in")
    assert not list(tmp_path.iterdir())


def test_nor_is_it_for_figures(hf_edit: Command, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pack)
    failed(hf_edit("evaluate", ".", "--model", tmp_path, "--save"), "the folder that you are in")


@pytest.mark.parametrize("verb", ["evaluate", "bench"])
def test_help_names_the_evaluators(hf_edit: Command, verb: str) -> None:
    shown = hf_edit(verb, "--help").stdout
    assert EVALUATORS == tuple(evaluators.EVALUATORS)
    assert all(name in shown for name in EVALUATORS) and "[default: all that there are probes for]" in shown
