"""A killed collection goes on where it was and gives the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_edit.models.editable import EditableModel
from hf_edit.prompting import PromptFormat
from hf_edit.statistics import unfinished
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.shards import Shard
from hf_edit.statistics.store import obtain, obtain_shard, recipe_folder
from hf_edit.statistics.unfinished import Unfinished


CONFIG = StatisticsConfig(tokens=256, conversations=4, length=32, batch=2, answer_tokens=4)


class Killed(Exception):
    """The process ended here."""


class KilledAt:
    """Ends a collection before a step of a stage."""

    def __init__(self, stage: str = "", step: int = 0) -> None:
        self.at, self.left = f"statistics: {stage}", step
        self.steps: dict[str, list[int]] = {}

    def stage(self, name: str, total: int) -> None:
        self.steps[name] = []

    def step(self, advance: int = 1, **info: float | str) -> None:
        name = list(self.steps)[-1]
        self.steps[name].append(advance)
        if name == self.at:
            self.left -= 1
            if self.left < 0:
                raise Killed


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "KEEP_SECONDS", 0.0)


@pytest.mark.parametrize("shard", [None, Shard(2, 2)])
@pytest.mark.parametrize(
    ("stage", "step", "spared"),
    [("text", 1, ()), ("answers", 1, ("text",)), ("moments", 0, ("text", "questions", "answers")), ("moments", 2, ())],
)
def test_killed_and_resumed(
    view: EditableModel,
    chat: PromptFormat,
    always: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    stage: str,
    step: int,
    spared: tuple[str, ...],
    shard: Shard | None,
) -> None:
    def run(progress: KilledAt) -> dict[str, bytes]:
        if shard is None:
            obtain(view, chat, view.linears[1:3], CONFIG, 0, progress)
        else:
            obtain_shard(view, chat, view.linears[1:3], CONFIG, 0, progress, shard)
        return contents(recipe_folder(view, chat, CONFIG, 0))

    whole = run(KilledAt())
    assert not any("unfinished" in name for name in whole)
    monkeypatch.setenv("HF_EDIT_CACHE", str(tmp_path / "killed"))
    with pytest.raises(Killed):
        run(KilledAt(stage, step))
    resumed = KilledAt()
    assert run(resumed) == whole
    assert not {f"statistics: {name}" for name in spared} & set(resumed.steps)
    if (stage, step) == ("moments", 2):  # two batches were done, and are not done again
        assert resumed.steps["statistics: moments"][0] == 4


def test_other_linears_do_not_go_on_from_there(view: EditableModel, chat: PromptFormat, always: None) -> None:
    with pytest.raises(Killed):
        obtain(view, chat, view.linears[1:3], CONFIG, 0, KilledAt("moments", 2))
    other = KilledAt()
    obtain(view, chat, view.linears[2:], CONFIG, 0, other)
    assert other.steps["statistics: moments"][0] == 2
    assert list(recipe_folder(view, chat, CONFIG, 0).glob("unfinished/sums-*"))  # of the other ones


def test_what_cannot_be_read_is_computed_again(tmp_path: Path) -> None:
    kept = Unfinished(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"damaged")
    assert kept.load("a") is None
    assert Unfinished().load("a") is None


def test_little_is_kept_within_a_minute(tmp_path: Path) -> None:
    kept = Unfinished(tmp_path / "kept")
    kept.keep("a", lambda: {"x": torch.ones(2)}, seldom=True)
    assert not (tmp_path / "kept").exists()
    kept.keep("a", lambda: {"x": torch.ones(2)})
    assert torch.equal((kept.load("a") or {})["x"], torch.ones(2))
    kept.remove("a", "b")
    assert not (tmp_path / "kept").exists()
