"""The cache: found again for the same base and settings, and for nothing else; whole files or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save as to_bytes

from hf_edit.errors import StatisticsError
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from hf_edit.statistics import files, store
from hf_edit.statistics.collect import collect
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.moments import SecondMoments
from hf_edit.statistics.preserved import Preserved
from hf_edit.statistics.store import cache_folder, load, obtain, obtain_corpus, recipe_folder, save, stored
from tests.tiny import tiny_model, tiny_tokenizer


class Collected(Exception):
    """The cache did not have it."""


@pytest.fixture
def nothing_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise Collected

    monkeypatch.setattr(store, "collect", fail)
    monkeypatch.setattr(store, "write_corpus", fail)


@pytest.fixture
def config(text: Path) -> StatisticsConfig:
    return StatisticsConfig(text=str(text), tokens=230, conversations=0, length=16, batch=4)


@pytest.fixture
def kept(view: EditableModel, plain: PromptFormat, config: StatisticsConfig) -> SecondMoments:
    """The first two linears', in the cache."""
    return obtain(view, plain, view.linears[:2], config, 0, Silent())


def equal(first: SecondMoments, second: SecondMoments) -> bool:
    return (first.tokens, first.source) == (second.tokens, second.source) and all(
        torch.equal(matrix, second.matrices[part][name])
        for part, matrices in first.matrices.items()
        for name, matrix in matrices.items()
    )


def test_found_again_without_collecting(
    kept: SecondMoments, plain: PromptFormat, config: StatisticsConfig, nothing_is_collected: None
) -> None:
    again = EditableModel.of(tiny_model())  # another object, the same base
    assert equal(obtain(again, plain, again.linears[:2], config, 0, Silent()), kept)


def test_only_what_is_missing_is_collected(
    view: EditableModel,
    kept: SecondMoments,
    plain: PromptFormat,
    config: StatisticsConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[str]] = []
    collect = store.collect
    monkeypatch.setattr(store, "collect", lambda *a: (asked.append([x.name for x in a[2]]), collect(*a))[1])
    monkeypatch.setattr(store, "write_corpus", None)  # the tokens are there already
    found = obtain(view, plain, view.linears[:3], config, 0, Silent())
    assert asked == [[view.linears[2].name]]
    assert equal(kept, found) and set(found.matrices["text"]) == {x.name for x in view.linears[:3]}


@pytest.mark.parametrize("other", ["base", "dtype", "seed", "format", "settings", "tokenizer", "text", "layer"])
def test_what_makes_another_entry(
    kept: SecondMoments,
    view: EditableModel,
    text: Path,
    config: StatisticsConfig,
    nothing_is_collected: None,
    other: str,
) -> None:
    if other == "base":
        view = EditableModel.of(tiny_model(seed=1))
    if other == "dtype":
        view = EditableModel.of(tiny_model(dtype=torch.bfloat16))
    if other == "settings":
        config = StatisticsConfig(**config.to_json() | {"tokens": 231})
    if other == "text":
        text.write_text(text.read_text() + "more", encoding="utf-8")
    kind = "sentencepiece" if other == "tokenizer" else "byte_level"
    prompts = PromptFormat.of({"format": "qa"}.get(other, "plain"), tiny_tokenizer(kind))
    linears = view.linears[3:] if other == "layer" else view.linears[:2]
    with pytest.raises(Collected):
        obtain(view, prompts, linears, config, int(other == "seed"), Silent())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_what_was_collected_with_a_users_adapter_is_another_entry(
    kept: SecondMoments, plain: PromptFormat, config: StatisticsConfig, nothing_is_collected: None
) -> None:
    model = tiny_model()
    model.add_adapter(LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False), "mine")
    view = EditableModel.of(model)
    with pytest.raises(Collected):
        obtain(view, plain, view.linears[:2], config, 0, Silent())
    model.disable_adapters()
    assert equal(obtain(view, plain, view.linears[:2], config, 0, Silent()), kept)


def test_the_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("HF_EDIT_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "hf_edit"


def test_what_is_stored(kept: SecondMoments, view: EditableModel, config: StatisticsConfig) -> None:
    entries = stored(view)
    assert [entry.linear for entry in entries] == [linear.name for linear in view.linears[:2]]
    for entry in entries:
        assert entry.path.is_file() and entry.source == config.text and entry.tokens == kept.tokens
    assert stored(EditableModel.of(tiny_model(seed=1))) == []


DAMAGED = {
    "truncated": lambda whole: whole[:-4],
    "empty": lambda _: b"",
    "no metadata": lambda _: to_bytes({"text": torch.eye(56)}),
    "strange metadata": lambda _: to_bytes({"text": torch.eye(56)}, metadata={"tokens": "{", "source": ""}),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file(
    kept: SecondMoments,
    view: EditableModel,
    plain: PromptFormat,
    config: StatisticsConfig,
    damage: Callable[[bytes], bytes],
) -> None:
    path = stored(view)[0].path
    content = damage(path.read_bytes())
    path.unlink()  # `kept` maps the old file
    path.write_bytes(content)
    for read in (lambda: obtain(view, plain, view.linears[:2], config, 0, Silent()), lambda: stored(view)):
        with pytest.raises(StatisticsError, match="cannot be read") as caught:
            read()
        assert str(path) in caught.value.message and "Delete the file" in caught.value.remedy
    path.unlink()
    assert equal(obtain(view, plain, view.linears[:2], config, 0, Silent()), kept)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StatisticsError, match="none.safetensors"):
        load(tmp_path, ["none"])


def test_the_corpus_is_written_once(
    view: EditableModel, chat: PromptFormat, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Conversations are those that the moments are over."""
    own = StatisticsConfig(tokens=240, length=12, conversations=6, answer_tokens=4)
    corpus = obtain_corpus(view, chat, own, 0, Silent())
    assert corpus.text.shape == (20, 12) and corpus.conversations
    request.getfixturevalue("nothing_is_collected")
    again = obtain_corpus(view, chat, own, 0, Silent())
    assert torch.equal(again.text, corpus.text) and again.conversations == corpus.conversations
    assert Preserved(view, chat, own, 0, Silent()).conversations() == corpus.conversations
    monkeypatch.setattr(store, "collect", collect)
    found = obtain(view, chat, view.linears[1:2], own, 0, Silent())
    expected = collect(view, corpus, view.linears[1:2], own.batch, Silent())
    assert equal(found, expected) and found.tokens["prompt"] == len(corpus.conversations)


def test_a_damaged_corpus(
    kept: SecondMoments, view: EditableModel, plain: PromptFormat, config: StatisticsConfig
) -> None:
    path = recipe_folder(view, plain, config, 0) / "corpus.safetensors"
    whole = path.read_bytes()
    for content in (whole[:-4], b"", to_bytes({"text": torch.eye(2)}), to_bytes({}, metadata={"source": "here"})):
        path.unlink()
        path.write_bytes(content)
        with pytest.raises(StatisticsError, match="cannot be read") as caught:
            obtain(view, plain, view.linears[2:3], config, 0, Silent())
        assert str(path) in caught.value.message and "Delete the file" in caught.value.remedy
    path.unlink()
    obtain(view, plain, view.linears[2:3], config, 0, Silent())


def test_a_file_is_seen_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is written, and after a write that fails half way."""
    moments = SecondMoments({"text": {"a": torch.eye(3)}}, {"text": 5}, "here")
    written: list[Path] = []

    def half(tensors: object, path: str, metadata: object) -> None:
        written.append(Path(path))
        Path(path).write_bytes(b"half")
        assert list(tmp_path.glob("*.safetensors")) == []
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", half)
        with pytest.raises(KeyboardInterrupt):
            save(moments, tmp_path)
    assert written and list(tmp_path.iterdir()) == []
    save(moments, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert equal(load(tmp_path, ["a"]), moments)


def test_a_cache_that_cannot_be_written(
    view: EditableModel, plain: PromptFormat, config: StatisticsConfig, cache: Path
) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(StatisticsError, match="cannot be kept") as caught:
        obtain(view, plain, view.linears[:1], config, 0, Silent())
    assert "HF_EDIT_CACHE" in caught.value.remedy
