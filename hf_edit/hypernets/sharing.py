"""Hypernetworks to the Hub and from it, in one commit and byte for byte."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_edit.errors import HubError
from hf_edit.files.reading import MAX_TENSOR_BYTES, PlainFolder
from hf_edit.hub.card import merged_card
from hf_edit.hub.client import HubCommit, is_repo_id
from hf_edit.hub.fetch import fetching, snapshot
from hf_edit.hub.push import Changes, Published, push
from hf_edit.hypernets.folder import CARD, FILES, located, read, save
from hf_edit.hypernets.manifest import MANIFEST, Manifest


def is_hypernet(folder: Path) -> bool:
    """Whether a folder says that it is a hypernetwork."""
    return (folder / MANIFEST).is_file()


def is_published(id: str, *, revision: str | None = None) -> bool:
    """Whether a folder here, or else a repository of the Hub, says that it is a hypernetwork.

    Raises:
        HubError: the repository could not be asked.
    """
    path = Path(id)
    if path.exists() or not is_repo_id(id):
        return is_hypernet(path)
    return is_hypernet(snapshot(id, (MANIFEST,), doing=fetching(id, revision), revision=revision))


def publish(files: Mapping[str, bytes], repo_id: str, *, message: str | None = None, **options: Any) -> HubCommit:
    """Publish a hypernetwork's files; what its owner wrote around the generated part of the card stays.

    Args:
        options: tag, branch, private, token and collection, as for `hf_edit.hub.push.push`.

    Raises:
        HubError: the repository holds something else, or the Hub refused or failed.
    """

    def plan(there: Published) -> Changes:
        foreign = sorted(there.names & {"config.json", "adapter_config.json"})
        if MANIFEST not in there.names and foreign:
            raise HubError(
                f"{there.repo_id!r} holds a model or adapter ({foreign[0]}).", "Push to a repository of its own."
            )
        return {**files, CARD: merged_card(files[CARD], there.read(CARD))}

    return push(repo_id, plan, message=message or "Hypernetwork", **options)


def publish_folder(path: str | os.PathLike[str], repo_id: str, **options: Any) -> HubCommit:
    """Publish the hypernetwork in a folder.

    Raises:
        PackError: it is not sound.
        HubError: as `publish`.
    """
    folder = PlainFolder(Path(path))
    read(folder)
    return publish(_files(folder), repo_id, **options)


def pull(id: str, out: str | os.PathLike[str], *, revision: str | None = None) -> tuple[Manifest, HubCommit | None]:
    """Check a hypernetwork of the Hub and copy it to the folder `out`; one that is there is replaced.

    Raises:
        PackError: it is not sound, or `out` cannot be replaced or written.
        HubError: it could not be fetched.
    """
    folder, origin = located(id, revision=revision)
    manifest, _ = read(folder)
    save(out, _files(folder))
    return manifest, origin


def _files(folder: PlainFolder) -> dict[str, bytes]:
    there = os.listdir(folder.path)
    return {name: folder.read(name, MAX_TENSOR_BYTES) for name in FILES if name in there}
