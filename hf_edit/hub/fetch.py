"""Getting files from the Hub, always of one commit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from hf_edit.errors import PackError
from hf_edit.hub.client import attempt


def fetching(id: str, revision: str | None) -> str:
    """What is being done when something that is no folder here is looked for on the Hub, as an error says it."""
    at = f" at revision {revision!r}" if revision else ""
    return f"{id!r} is no folder here, and fetching it{at} from the Hub"


def check_no_revision(local: str | os.PathLike[str], revision: str | None) -> None:
    """Raise a PackError where a revision is asked for and there is a folder here, which has but one content."""
    if revision is not None and os.path.isdir(local):
        raise PackError(
            f"{local} is a folder here, which has no revision {revision!r}.",
            "Leave the revision out to read the folder; for the repository of that name, call this from elsewhere.",
        )


def snapshot(
    repo_id: str,
    patterns: Iterable[str],
    *,
    doing: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """The folder `<cache>/models--<owner>--<name>/snapshots/<commit>` with the files that match, fetched or cached.

    Its files are links into the repository's folder of the cache. Offline, it is the commit that was fetched last.

    Args:
        doing: the subject of an error's message.

    Raises:
        HubError: it is not there, or could not be fetched.
    """
    return Path(
        attempt(
            lambda: snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                allow_patterns=list(patterns),
            ),
            doing,
        )
    )


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit.

    Args:
        sizes: path -> bytes.
        digests: path -> sha256, of files in LFS alone.
    """

    commit: str
    sizes: Mapping[str, int]
    digests: Mapping[str, str]


def listing(repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> Listing:
    """The files of a repository, before any is fetched.

    Raises:
        HubError: it cannot be listed.
    """
    api = HfApi(token=token)
    at = f" at revision {revision!r}" if revision else ""
    info = attempt(
        lambda: api.model_info(repo_id, revision=revision, files_metadata=True), f"Listing {repo_id!r}{at} on the Hub"
    )
    there = info.siblings or ()
    sizes = {file.rfilename: file.size or 0 for file in there}
    return Listing(info.sha or "", sizes, {file.rfilename: file.lfs.sha256 for file in there if file.lfs})


def download(
    repo_id: str, commit: str, names: Iterable[str], folder: Path, *, token: str | bool | None = None
) -> None:
    """Put files of a commit into a folder, under the paths that they have in the repository.

    Raises:
        HubError: one could not be fetched.
    """
    wanted = list(names)
    attempt(
        lambda: snapshot_download(repo_id, revision=commit, token=token, local_dir=folder, allow_patterns=wanted),
        f"Fetching {repo_id!r} from the Hub",
    )
