"""Hypernetworks to a Hub and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_edit.errors import HubError, PackError
from hf_edit.files.reading import PlainFolder
from hf_edit.hypernets.folder import CARD, WEIGHTS, located, read, to_files
from hf_edit.hypernets.manifest import MANIFEST
from hf_edit.hypernets.sharing import is_published, publish, publish_folder, pull
from tests.hypernets.test_folder import manifest, tensors, written
from tests.loopback_hub import REAL_CLIENT, LoopbackHub, loopback_hub  # noqa: F401


pytestmark = REAL_CLIENT


def test_there_and_back(hub: LoopbackHub, tmp_path: Path) -> None:
    done = publish_folder(written(tmp_path / "net"), "me/net", tag="v1")
    assert is_published("me/net") and hub.repositories["me/net"].tags == {"v1": done.commit}
    copied, origin = pull("me/net", tmp_path / "copy", revision="v1")
    assert origin == done and copied.files == read(PlainFolder(tmp_path / "net"))[0].files
    for name in (MANIFEST, WEIGHTS):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "net" / name).read_bytes()
    folder, origin = located("me/net")
    assert read(folder)[0] == copied and origin == done


def test_a_folder_here_has_no_revision(tmp_path: Path) -> None:
    written(tmp_path / "net")
    located(tmp_path / "net")
    with pytest.raises(PackError, match="net is a folder here, which has no revision 'v1'"):
        located(tmp_path / "net", revision="v1")


def test_a_push_replaces_what_was_there_and_keeps_the_owners_words(hub: LoopbackHub, tmp_path: Path) -> None:
    publish_folder(written(tmp_path / "net"), "me/net")
    card = hub.files("me/net")[CARD]
    hub.upload("me/net", {CARD: card + b"\nMy own words.\n", "notes.txt": b"mine"})
    other = manifest(ranks=(2,))
    publish(to_files(other, tensors(other)), "me/net")
    assert b"My own words." in hub.files("me/net")[CARD] and b"rank 2," in hub.files("me/net")[CARD]
    assert hub.files("me/net")["notes.txt"] == b"mine"
    assert read(located("me/net")[0])[0].ranks == (2,)


def test_a_repository_of_something_else(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.upload("me/model", {"config.json": b"{}"})
    with pytest.raises(HubError, match=r"holds a model or adapter \(config.json\)"):
        publish_folder(written(tmp_path / "net"), "me/model")
    assert not is_published("me/model")
    with pytest.raises(PackError, match="holds no hypernetwork"):
        located("me/model")
    with pytest.raises(HubError, match="no such repository"):
        located("me/none")


def test_one_that_is_not_sound_goes_nowhere(hub: LoopbackHub, tmp_path: Path) -> None:
    weights = written(tmp_path / "net") / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(PackError, match="is not the file that"):
        publish_folder(tmp_path / "net", "me/net")
    assert not hub.repositories
    hub.upload("me/bad", {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()})
    with pytest.raises(PackError, match="is not the file that"):
        pull("me/bad", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
