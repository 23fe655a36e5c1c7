"""Finding a pack: a folder, or a repository of the Hub, whose files are fetched into the Hub's cache."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from hf_edit.errors import PackError
from hf_edit.packs.atomic import recover
from hf_edit.packs.reading import PackFolder


def locate(
    id_or_path: str | os.PathLike[str],
    *,
    file_names: Iterable[str],
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> PackFolder:
    """The folder of a pack.

    Args:
        id_or_path: a folder if there is one, else the id of a repository.
        file_names: the only files to fetch.
        subfolder: where in the folder or repository the pack is.

    Raises:
        PackError: there is none, or it could not be fetched.
    """
    sub = PurePosixPath(subfolder or ".")
    if sub.is_absolute() or ".." in sub.parts or "\\" in str(sub):
        raise PackError(f"The subfolder {subfolder!r} leads out of the pack's folder.", "Give a path inside it.")
    local = Path(id_or_path)
    recover(local / sub)
    if local.is_dir():
        return PackFolder(local / sub)
    if isinstance(id_or_path, os.PathLike) or local.exists():
        raise PackError(f"{id_or_path} is not a folder.", "Give the folder of a pack, or its id on the Hub.")
    try:
        snapshot = snapshot_download(
            id_or_path,
            revision=revision,
            token=token,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            allow_patterns=[str(sub / name) for name in file_names],
        )
    except Exception as error:  # what kinds there are depends on the version of the Hub's client
        raise _translated(error, id_or_path, revision) from error
    repository = Path(snapshot).parent.parent  # <cache>/models--<owner>--<name>/snapshots/<commit>
    return PackFolder(Path(snapshot) / sub, within=repository)


def _translated(error: Exception, id: str, revision: str | None) -> PackError:
    at = f" at revision {revision!r}" if revision else ""
    if isinstance(error, GatedRepoError):
        return PackError(f"The repository {id!r} is gated.", "Ask its owner for access, then pass token=.")
    if isinstance(error, LocalEntryNotFoundError):
        return PackError(f"{id!r}{at} is no folder here, and the Hub cannot be reached.", "Check path and network.")
    if isinstance(error, RepositoryNotFoundError):
        return PackError(
            f"{id!r} is neither a folder nor a repository that you can read.",
            "Check the name; pass token= if private.",
        )
    reason = str(error).strip().partition("\n")[0]
    return PackError(f"{id!r}{at} is no folder here, and the Hub gave: {reason}", "Check the name and the revision.")
