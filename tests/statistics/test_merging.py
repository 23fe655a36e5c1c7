"""Shards of a corpus: disjoint, all of it together, and merged to what one collection gives."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hf_edit.errors import ConfigError, HfEditWarning, StatisticsError
from hf_edit.models.editable import EditableModel
from hf_edit.processes import Processes
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.merging import merge
from hf_edit.statistics.shards import Shard
from hf_edit.statistics.store import load, obtain, obtain_corpus, obtain_shard, recipe_folder, stored
from tests.tiny import tiny_model


CONFIG = StatisticsConfig(tokens=256, conversations=3, length=32, batch=2)
Make = Callable[..., Path]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=9), st.integers(0, 30))
def test_shards_and_processes_are_disjoint_and_everything(processes: list[int], n: int) -> None:
    """Whatever number of processes each shard is collected by."""
    parts = [
        Shard(number, len(processes)).split(Processes(rank, several)).of(range(n))
        for number, several in enumerate(processes, start=1)
        for rank in range(several)
    ]
    assert sorted(i for part in parts for i in part) == list(range(n))


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", ""])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(ConfigError, match="no shard") as caught:
        Shard.parsed(text)
    assert "1/4" in caught.value.remedy


def test_a_shard_is_written_as_it_is_read() -> None:
    assert str(Shard.parsed("2/4")) == "2/4" and Shard.parsed("2/4") == Shard(2, 4)


@pytest.fixture
def shard_of(view: EditableModel, chat: PromptFormat) -> Make:
    """Collects a shard of the first two linears."""

    def make(text: str, linears: int = 2, config: StatisticsConfig = CONFIG, model: EditableModel = view) -> Path:
        return obtain_shard(model, chat, model.linears[:linears], config, 0, Silent(), Shard.parsed(text))

    return make


def test_merged_shards_are_one_collection(view: EditableModel, chat: PromptFormat, shard_of: Make) -> None:
    folders = [shard_of(f"{i}/3") for i in (3, 1, 2)]
    assert stored(view) == []  # a shard is not taken for the whole
    files = merge(folders)
    folder = recipe_folder(view, chat, CONFIG, 0)
    names = [linear.name for linear in view.linears[:2]]
    assert files == [folder / f"{name}.safetensors" for name in names]
    merged = load(folder, names)
    found = {part: {name: merged.matrices[part][name].clone() for name in names} for part in merged.matrices}
    for path in files:
        path.unlink()
    whole = obtain(view, chat, view.linears[:2], CONFIG, 0, Silent())
    assert dict(merged.tokens) == dict(whole.tokens) and merged.source == whole.source
    assert set(found) == set(whole.matrices) == {"text", "chat", "prompt", "answer"}
    for part, matrices in found.items():
        for name, matrix in matrices.items():
            expected = whole.matrices[part][name]
            torch.testing.assert_close(matrix, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_a_shard_is_not_collected_twice(shard_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shard_of("1/2")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert shard_of("1/2") == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.fixture
def talks(view: EditableModel, chat: PromptFormat) -> int:
    """How many questions the model invents."""
    return len(obtain_corpus(view, chat, CONFIG, 0, Silent()).conversations)


def test_shards_without_some_part(shard_of: Make, view: EditableModel, talks: int) -> None:
    """As many shards as batches: some have no text, the others no questions."""
    count = 4 + -(-talks // 2)
    merge([shard_of(f"{i}/{count}", linears=1) for i in range(1, count + 1)])
    (entry,) = stored(view)
    assert entry.tokens["text"] == 256 and entry.tokens["prompt"] == talks > 0


def test_more_shards_than_batches(shard_of: Make, talks: int) -> None:
    count = 4 + -(-talks // 2)
    with pytest.raises(StatisticsError, match=rf"Shard {count + 1}/8 is empty: the corpus has {count} batches"):
        shard_of(f"{count + 1}/8")


@pytest.mark.filterwarnings("ignore:The model invented no question:hf_edit.errors.HfEditWarning")
def test_what_is_not_merged(shard_of: Make, tmp_path: Path) -> None:
    one, two = shard_of("1/2"), shard_of("2/2")
    other = EditableModel.of(tiny_model(seed=1))
    cases = [
        ([one], "1 of 2 shards are missing, the first of them 2"),
        ([one, one], "Shard 1/2 is given 2 times"),
        ([one, two, two], "Shard 2/2 is given 2 times"),
        ([one, shard_of("2/3")], "another number of shards: 3, not 2"),
        ([one, shard_of("2/2", model=other)], "another base model"),
        ([one, shard_of("2/2", config=StatisticsConfig(**CONFIG.to_json() | {"tokens": 320}))], "another procedure"),
        ([one, tmp_path / "nothing"], "holds no statistics"),
    ]
    shutil.copytree(two, tmp_path / "fewer")
    next((tmp_path / "fewer").iterdir()).unlink()
    cases.append(([one, tmp_path / "fewer"], "hold other linears"))
    for folders, said in cases:
        with pytest.raises(StatisticsError, match=said) as caught:
            merge(folders)
        assert caught.value.remedy
    assert not list(one.parent.parent.glob("*down_proj*"))


@pytest.mark.parametrize("change", [{"base": "../../x"}, {"shard": "0/2"}, {"shard": "x"}, {"tokens": "{"}, {}])
def test_damaged_or_hostile_metadata(shard_of: Make, change: dict[str, str], tmp_path: Path) -> None:
    path = next(shard_of("1/1", linears=1).iterdir())
    metadata = {"base": "0" * 16, "recipe": "1" * 16, "shard": "1/1", "source": "self", "tokens": '{"text": 5}'}
    folder = tmp_path / "changed"
    folder.mkdir()
    save_file(load_file(path), folder / path.name, {**metadata, **change} if change else None)
    with pytest.raises(StatisticsError, match=r"no shard|cannot be read"):
        merge([folder])


def test_few_tokens_are_told_of_the_whole(view: EditableModel, chat: PromptFormat) -> None:
    few = StatisticsConfig(tokens=128, conversations=0, length=32, batch=2)
    folders = [obtain_shard(view, chat, view.linears[:1], few, 0, Silent(), Shard(i, 2)) for i in (1, 2)]
    with pytest.warns(HfEditWarning, match="Statistics of 128 tokens for linears with 56 inputs"):
        (path,) = merge(folders)
    assert path.name == f"{view.linears[0].name}.safetensors"
