"""Statistics to a Hub and back, and what is refused on the way into the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hf_edit.errors import HubError, StatisticsError
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from hf_edit.statistics import store
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.sharing import pull_statistics, push_statistics
from hf_edit.statistics.store import base_folder, obtain, obtain_corpus, recipe_folder
from tests.loopback_hub import REAL_CLIENT, LoopbackHub, loopback_hub  # noqa: F401
from tests.tiny import tiny_model


pytestmark = REAL_CLIENT
CONFIG = StatisticsConfig(tokens=256, conversations=2, length=32)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Another machine: an empty cache of hf_edit and of the Hub's client."""

    def move() -> None:
        monkeypatch.setenv("HF_EDIT_CACHE", str(tmp_path / "elsewhere"))

    return move


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_nobody_collects_twice(
    hub: LoopbackHub, view: EditableModel, chat: PromptFormat, elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    linears = view.linears[1:3]
    here = obtain(view, chat, linears, CONFIG, 0, Silent())
    done = push_statistics(view, "me/stats", tag="v1")
    assert push_statistics(view, "me/stats") == done
    mine = files(base_folder(view).parent)

    elsewhere()
    assert not base_folder(view).exists()
    origin, new = pull_statistics(view, "me/stats", revision="v1")
    assert origin == done and files(base_folder(view).parent) == mine
    assert sorted(new) == sorted(base_folder(view).parent / name for name in mine)
    monkeypatch.setattr(store, "collect", None)  # fails if it is called
    monkeypatch.setattr(store, "write_corpus", None)
    there = obtain(view, chat, linears, CONFIG, 0, Silent())
    assert there.tokens == here.tokens
    for part, matrices in here.matrices.items():
        assert all(torch.equal(matrix, there.matrices[part][name]) for name, matrix in matrices.items())
    assert obtain_corpus(view, chat, CONFIG, 0, Silent()).conversations
    assert pull_statistics(view, "me/stats") == (done, [])


def test_the_card_says_of_which_bases_and_how_many_tokens(hub: LoopbackHub, view: EditableModel, chat, plain) -> None:
    moments = obtain(view, chat, view.linears[:1], CONFIG, 0, Silent())
    push_statistics(view, "me/stats")
    obtain(view, plain, view.linears[:2], CONFIG, 0, Silent())
    other = EditableModel.of(tiny_model(seed=1))
    obtain(other, plain, other.linears[:1], replace(CONFIG, conversations=0), 0, Silent())
    push_statistics(view, "me/stats")
    push_statistics(other, "me/stats")
    index = json.loads(hub.files("me/stats")["statistics.json"])
    assert {name: len(base["recipes"]) for name, base in index.items()} == {
        base_folder(view).name: 2,
        base_folder(other).name: 1,
    }
    card = hub.files("me/stats")["README.md"].decode()
    assert "\nbase_model:\n- tiny-random/llama\n---\n" in card
    assert "hf-edit stats pull me/stats" in card and card.count("| tiny-random/llama, float32 |") == 3
    assert f"answer {moments.tokens['answer']:,}, chat {moments.tokens['chat']:,}" in card


def test_a_private_text_stays_private(
    hub: LoopbackHub, view: EditableModel, plain: PromptFormat, text: Path, elsewhere
) -> None:
    private = StatisticsConfig(text=str(text), tokens=256, conversations=0, length=32)
    obtain(view, plain, view.linears[:1], private, 0, Silent())
    with pytest.raises(StatisticsError, match="no statistics of this model that could be published"):
        push_statistics(view, "me/stats")
    assert not hub.repositories
    obtain(view, plain, view.linears[:1], CONFIG, 0, Silent())
    push_statistics(view, "me/stats")
    assert not any(str(text).encode() in content for content in hub.files("me/stats").values())
    assert recipe_folder(view, plain, private, 0).name not in str(sorted(hub.files("me/stats")))


def test_another_base_or_dtype_is_told(hub: LoopbackHub, view: EditableModel, plain: PromptFormat) -> None:
    obtain(view, plain, view.linears[:1], CONFIG, 0, Silent())
    push_statistics(view, "me/stats")
    with pytest.raises(StatisticsError, match="no statistics of this model in bfloat16"):
        pull_statistics(EditableModel.of(tiny_model(dtype=torch.bfloat16)), "me/stats")
    with pytest.raises(HubError, match="no such repository"):
        pull_statistics(view, "me/none")


@pytest.mark.parametrize(
    ("which", "forged", "said"),
    [(1, lambda content: content[:-8], "cannot be read"), (1, lambda content: content * 90, "bytes, more than")]
    + [(None, lambda content: content[:100], "cannot be read")],
)
def test_one_unsound_file_and_nothing_enters_the_cache(
    hub: LoopbackHub, view: EditableModel, plain: PromptFormat, elsewhere, which: int | None, forged, said: str
) -> None:
    obtain(view, plain, view.linears[:2], CONFIG, 0, Silent())
    push_statistics(view, "me/stats")
    wanted = "corpus" if which is None else view.linears[which].name
    name = next(name for name in hub.files("me/stats") if name.endswith(f"/{wanted}.safetensors"))
    hub.upload("me/stats", {name: forged(hub.files("me/stats")[name])})
    elsewhere()
    with pytest.raises(StatisticsError, match=said) as caught:
        pull_statistics(view, "me/stats")
    assert wanted in caught.value.message
    assert not any(path.suffix == ".safetensors" for path in store.cache_folder().rglob("*"))


def test_names_that_lead_elsewhere_are_not_taken(
    hub: LoopbackHub, view: EditableModel, plain: PromptFormat, elsewhere
) -> None:
    obtain(view, plain, view.linears[:1], CONFIG, 0, Silent())
    push_statistics(view, "me/stats")
    base = base_folder(view).name
    content = next(c for n, c in hub.files("me/stats").items() if n.endswith("down_proj.safetensors"))
    hub.upload("me/stats", {f"{base}/{'0' * 16}/x.safetensors": content, f"{base}/weights.bin": b"x"})
    elsewhere()
    pull_statistics(view, "me/stats")
    names = {path.name for path in store.cache_folder().rglob("*") if path.is_file()}
    assert names == {"corpus.safetensors", f"{view.linears[0].name}.safetensors"}


def test_a_damaged_index_is_told(hub: LoopbackHub, view: EditableModel, plain: PromptFormat) -> None:
    obtain(view, plain, view.linears[:1], CONFIG, 0, Silent())
    hub.upload("me/stats", {"statistics.json": b'{"0123": {"recipes": {"a": 1}}}'})
    with pytest.raises(HubError, match="statistics.json of the repository is damaged"):
        push_statistics(view, "me/stats")
