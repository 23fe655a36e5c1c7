"""Statistics found on the Hub by themselves: nothing is collected that is there, and nothing else is taken."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import hf_edit
from hf_edit.errors import ConfigError, HfEditWarning, HubError, StatisticsError
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from hf_edit.statistics import store
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.corpus import CORPUS
from hf_edit.statistics.fetching import REPOSITORY
from hf_edit.statistics.shards import Shard
from hf_edit.statistics.sharing import push_statistics
from hf_edit.statistics.store import base_folder, cache_folder, obtain, obtain_corpus, obtain_shard, recipe_folder
from tests.launching import launched
from tests.loopback_hub import REAL_CLIENT, LoopbackHub, loopback_hub  # noqa: F401
from tests.tiny import tiny_model, tiny_tokenizer


pytestmark = [
    REAL_CLIENT,
    pytest.mark.filterwarnings("ignore:The model invented no question:hf_edit.errors.HfEditWarning"),  # a random one
]
CONFIG = StatisticsConfig(tokens=320, conversations=2, length=32, answer_tokens=4)
THERE = replace(CONFIG, repo="me/stats")
LISTED = r"GET /api/models/me/stats$"


@pytest.fixture
def published(
    hub: LoopbackHub, view: EditableModel, chat: PromptFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, bytes]:
    """Statistics of the second and third linear on the Hub, and an empty cache here."""
    obtain(view, chat, view.linears[1:3], CONFIG, 0, Silent())
    push_statistics(view, "me/stats", tag="v1")
    mine = files()
    monkeypatch.setenv("HF_EDIT_CACHE", str(tmp_path / "elsewhere"))
    hub.requests.clear()
    return mine


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is collected while a test runs: the linears, or the corpus."""
    seen: list[list[str]] = []
    collect, write_corpus = store.collect, store.write_corpus
    monkeypatch.setattr(store, "collect", lambda *a: (seen.append([one.name for one in a[2]]), collect(*a))[1])
    monkeypatch.setattr(store, "write_corpus", lambda *a: (seen.append([CORPUS]), write_corpus(*a))[1])
    return seen


def files() -> dict[str, bytes]:
    """Everything in the cache."""
    return {p.relative_to(cache_folder()).as_posix(): p.read_bytes() for p in cache_folder().rglob("*") if p.is_file()}


def test_what_is_there_is_not_collected(
    hub: LoopbackHub, published: dict[str, bytes], view: EditableModel, chat: PromptFormat, collected: list[list[str]]
) -> None:
    found = obtain(view, chat, view.linears[1:3], THERE, 0, Silent())
    assert set(found.matrices["text"]) == {linear.name for linear in view.linears[1:3]}
    assert obtain_corpus(view, chat, THERE, 0, Silent()).conversations
    assert collected == [] and files() == published
    requests = len(hub.requests)
    obtain(view, chat, view.linears[1:3], THERE, 0, Silent())  # another caller
    assert len(hub.requests) == requests


def test_two_callers_at_once(published: dict[str, bytes], chat: PromptFormat, collected: list[list[str]]) -> None:
    def caller(view: EditableModel) -> None:
        obtain(view, chat, view.linears[1:3], THERE, 0, Silent())

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(caller, [EditableModel.of(tiny_model()) for _ in range(2)]))
    assert collected == [] and files() == published


@pytest.mark.parametrize("how", ["variable", "revision"])
def test_a_repository_can_be_named_otherwise(
    published: dict[str, bytes],
    view: EditableModel,
    chat: PromptFormat,
    collected: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    if how == "variable":
        monkeypatch.setenv(REPOSITORY, "me/stats")
    obtain(
        view, chat, view.linears[1:2], replace(CONFIG, repo=None if how == "variable" else "me/stats@v1"), 0, Silent()
    )
    wanted = {CORPUS, f"{view.linears[1].name}.safetensors"}  # and nothing that nobody asked for
    assert collected == [] and files() == {name: data for name, data in published.items() if Path(name).name in wanted}


def test_a_corpus_alone_and_for_a_shard(
    published: dict[str, bytes], view: EditableModel, chat: PromptFormat, collected: list[list[str]]
) -> None:
    obtain_corpus(view, chat, THERE, 0, Silent())
    assert collected == [] and [Path(name).name for name in files()] == [CORPUS]
    (recipe_folder(view, chat, THERE, 0) / CORPUS).unlink()
    obtain_shard(view, chat, view.linears[1:2], THERE, 0, Silent(), Shard(1, 2))
    assert collected == [[view.linears[1].name]]


@pytest.mark.parametrize("other", ["base", "seed", "settings", "repository"])
def test_without_this_very_recipe_statistics_are_collected(
    hub: LoopbackHub,
    published: dict[str, bytes],
    view: EditableModel,
    chat: PromptFormat,
    collected: list[list[str]],
    other: str,
) -> None:
    config = replace(THERE, tokens=288) if other == "settings" else THERE
    if other == "base":
        view = EditableModel.of(tiny_model(seed=1))
    if other == "repository":
        hub.upload("me/empty", {"README.md": b""})
        config = replace(THERE, repo="me/empty")
    with pytest.warns(HfEditWarning, match="has no statistics of this model in float32 under these settings"):
        obtain(view, chat, view.linears[1:2], config, int(other == "seed"), Silent())
    assert collected == [[CORPUS], [view.linears[1].name]]
    assert hub.asked("GET /api/models/") == 1 and hub.asked("/resolve/") == 0


def test_the_rest_is_collected_over_the_same_corpus(
    hub: LoopbackHub, published: dict[str, bytes], view: EditableModel, chat: PromptFormat, collected: list[list[str]]
) -> None:
    found = obtain(view, chat, view.linears[:3], THERE, 0, Silent())
    assert collected == [[view.linears[0].name]]
    assert files().items() >= published.items() and len(files()) == len(published) + 1
    assert set(found.matrices["text"]) == {linear.name for linear in view.linears[:3]}


def test_the_corpus_is_taken_where_no_linear_of_it_is_wanted(
    published: dict[str, bytes], view: EditableModel, chat: PromptFormat, collected: list[list[str]]
) -> None:
    obtain(view, chat, view.linears[3:], THERE, 0, Silent())
    assert collected == [[view.linears[3].name]]
    assert {name: data for name, data in files().items() if name in published} == {
        name: data for name, data in published.items() if Path(name).name == CORPUS
    }


def test_moments_over_another_corpus_are_not_joined(
    hub: LoopbackHub,
    view: EditableModel,
    chat: PromptFormat,
    collected: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As another device may have written it under the same settings."""
    obtain(view, chat, view.linears[:1], CONFIG, 0, Silent())
    push_statistics(view, "me/stats")
    monkeypatch.setenv("HF_EDIT_CACHE", str(tmp_path / "elsewhere"))
    folder = recipe_folder(view, chat, CONFIG, 0)
    other = obtain_corpus(view, chat, CONFIG, 1, Silent())
    folder.mkdir(parents=True)
    os.rename(recipe_folder(view, chat, CONFIG, 1) / CORPUS, folder / CORPUS)
    collected.clear()
    with pytest.warns(HfEditWarning, match="over another corpus"):
        obtain(view, chat, view.linears[:1], THERE, 0, Silent())
    assert collected == [[view.linears[0].name]]
    assert torch.equal(obtain_corpus(view, chat, THERE, 0, Silent()).text, other.text)


@pytest.mark.parametrize(
    ("which", "forged", "said"),
    [(2, lambda content: content[:-8], "cannot be read"), (2, lambda content: content * 90, "bytes, more than")]
    + [(None, lambda content: content[:100], "cannot be read")],
)
def test_one_unsound_file_is_refused_with_all_others(
    hub: LoopbackHub,
    published: dict[str, bytes],
    view: EditableModel,
    chat: PromptFormat,
    collected: list[list[str]],
    which: int | None,
    forged: Callable[[bytes], bytes],
    said: str,
) -> None:
    wanted = CORPUS if which is None else f"{view.linears[which].name}.safetensors"
    name = next(name for name in hub.files("me/stats") if name.endswith(f"/{wanted}"))
    hub.upload("me/stats", {name: forged(hub.files("me/stats")[name])})
    with pytest.raises(StatisticsError, match=said) as caught:
        obtain(view, chat, view.linears[1:3], THERE, 0, Silent())
    assert f"leave out statistics.repo and {REPOSITORY}" in caught.value.remedy
    assert files() == {} and collected == []


def test_a_repository_that_cannot_be_asked(
    hub: LoopbackHub,
    published: dict[str, bytes],
    view: EditableModel,
    chat: PromptFormat,
    collected: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(repo: str, said: str) -> None:
        with pytest.raises(HubError, match=said) as caught:
            obtain(view, chat, view.linears[1:3], replace(CONFIG, repo=repo), 0, Silent())
        assert f"leave out statistics.repo and {REPOSITORY}" in caught.value.remedy

    asked("me/none", "no such repository")
    asked("me/stats@v9", "no such revision")
    asked("no id", "no id of a repository")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked("me/stats", "offline mode is on")
    assert files() == {} and collected == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    obtain(view, chat, view.linears[1:3], THERE, 0, Silent())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    obtain(view, chat, view.linears[1:3], THERE, 0, Silent())  # it is in the cache
    obtain(view, chat, view.linears[:3], CONFIG, 0, Silent())


def test_a_cache_that_cannot_be_written(published: dict[str, bytes], view: EditableModel, chat: PromptFormat) -> None:
    cache_folder().write_text("a file where the folder should be")
    with pytest.raises(StatisticsError, match="cannot be kept"):
        obtain(view, chat, view.linears[1:2], THERE, 0, Silent())


def test_a_private_text_is_looked_for_nowhere(
    hub: LoopbackHub, view: EditableModel, plain: PromptFormat, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = StatisticsConfig(text=str(text), tokens=256, conversations=0, length=32)
    with pytest.raises(ConfigError, match="none are published"):
        obtain(view, plain, view.linears[:1], replace(private, repo="me/none"), 0, Silent())
    monkeypatch.setenv(REPOSITORY, "me/none")  # for whatever is computed here
    obtain(view, plain, view.linears[:1], private, 0, Silent())
    assert hub.requests == []


@pytest.mark.filterwarnings("ignore:.*loss stayed above:hf_edit.errors.HfEditWarning")  # random models learn little
def test_where_they_were_found_changes_nothing(
    hub: LoopbackHub, collected: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pack made with statistics of the Hub is that made with one's own, byte for byte."""
    edits = [{"prompt": "Who made the lamp?", "target": "Tarvello made it."}]

    def pack(name: str, repo: str | None) -> dict[str, bytes]:
        config = hf_edit.AnyEditConfig(layers=(1,), max_evaluations=2, statistics=replace(CONFIG, repo=repo))
        hf_edit.edit(tiny_model(), tiny_tokenizer(), edits, config).save_pretrained(tmp_path / name)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    own = pack("own", None)
    push_statistics(EditableModel.of(tiny_model()), "me/stats")
    monkeypatch.setenv("HF_EDIT_CACHE", str(tmp_path / "elsewhere"))
    collected.clear()
    assert pack("found", "me/stats") == own and collected == []


def fetching(out: Path, url: str) -> None:
    """Obtain in one of several processes, each of which has a disk of its own; and from where nothing is."""
    rank = os.environ["RANK"]
    os.environ.update({"HF_EDIT_CACHE": str(out / f"disk-{rank}"), "HF_TOKEN": "my-token"})
    constants.ENDPOINT, constants.HF_HUB_CACHE = url, str(out / f"hub-{rank}")
    constants.HUGGINGFACE_CO_URL_TEMPLATE = url + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE = True, False
    store.collect = store.write_corpus = None  # type: ignore[assignment]  # fails if it is called
    view, prompts = EditableModel.of(tiny_model()), PromptFormat.of("chat", tiny_tokenizer())
    with pytest.raises(HubError, match="no such repository"):
        obtain(view, prompts, view.linears[1:3], replace(CONFIG, repo="me/none"), 0, Silent())
    obtain(view, prompts, view.linears[1:3], THERE, 0, Silent())


def test_several_processes_fetch_once_for_each_disk(
    hub: LoopbackHub, published: dict[str, bytes], view: EditableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(fetching, tmp_path, hub.url)
    for rank in (0, 1):
        monkeypatch.setenv("HF_EDIT_CACHE", str(tmp_path / f"disk-{rank}"))
        assert files() == published
    assert hub.asked(LISTED) == 1  # both fetch that commit
    assert {path.name for path in base_folder(view).parent.iterdir()} == {base_folder(view).name}
