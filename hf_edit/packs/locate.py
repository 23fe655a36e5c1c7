"""Finding a pack: a folder, or a repository of the Hub, whose files are fetched into the Hub's cache."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hf_edit.errors import PackError
from hf_edit.files.atomic import recover
from hf_edit.files.reading import PlainFolder
from hf_edit.hub.client import HubCommit, is_repo_id
from hf_edit.hub.fetch import check_no_revision, fetching, listing, snapshot
from hf_edit.packs.contents import MANIFEST
from hf_edit.validation import shown


LICENSE = "LICENSE"


@dataclass(frozen=True)
class Place:
    """Where a folder of hf_edit's is, or would be: nobody has looked whether it is there.

    Args:
        within: the folder of the Hub's cache that holds it, if it is of the Hub.
        origin: the commit that it is of, if it is of the Hub.
    """

    path: Path
    within: Path | None = None
    origin: HubCommit | None = None

    def opened(self) -> PlainFolder:
        """The folder; PackError where there is none."""
        return PlainFolder(self.path, within=self.within)

    def entries(self) -> list[str]:
        """The names in it, also of what was not fetched; in a repository without licence and other packs' folders.

        Raises:
            HubError: the commit cannot be listed.
        """
        if self.origin is None:
            return os.listdir(self.path)
        at = inside(self.origin.subfolder)
        paths = map(PurePosixPath, listing(self.origin.repo_id, revision=self.origin.commit).sizes)
        within = [path.relative_to(at) for path in paths if path.is_relative_to(at)]
        others = {path.parent for path in within if path.name == MANIFEST and path.parent.parts}
        return sorted({path.parts[0] for path in within if others.isdisjoint(path.parents)} - {LICENSE})

    def of_pack(self) -> PlainFolder:
        """The same, which in a repository has to be a pack's; PackError where it is none."""
        if self.origin is not None and not (self.path / MANIFEST).is_file():
            subfolder = self.origin.subfolder
            where = "pack" if subfolder is None else f"folder {subfolder!r} with a pack"
            raise PackError(
                f"The repository {self.origin.repo_id!r} has no {where} at commit {self.origin.commit}.",
                "Check the name, the revision and the subfolder.",
            )
        return self.opened()


def locate(
    id_or_path: str | os.PathLike[str],
    *,
    file_names: Iterable[str],
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Place:
    """Where a pack, or what else hf_edit keeps in folders, is.

    Args:
        id_or_path: a folder if there is one, else the id of a repository.
        file_names: the only files to fetch, or patterns of such.
        revision: branch, tag or commit on the Hub; offline, what was fetched last under this name.
        subfolder: where in the folder or repository it is.

    Raises:
        PackError: there is no folder or repository of that name, the subfolder leads out of it, or a revision is asked
            for of a folder here.
        HubError: the repository or revision is not there, or could not be fetched.
    """
    sub = inside(subfolder)
    local = Path(id_or_path)
    _check_path(local)
    if not Path(os.path.realpath(local / sub)).is_relative_to(os.path.realpath(local)):
        raise _escape(subfolder)
    recover(local / sub)
    check_no_revision(local, revision)
    if local.is_dir():
        return Place(local / sub)
    if isinstance(id_or_path, os.PathLike) or local.exists():
        raise PackError(f"{id_or_path} is not a folder.", "Give the folder of a pack.")
    if not is_repo_id(id_or_path):
        raise PackError(
            f"{id_or_path!r} is no folder here, and no id of a repository on the Hub.",
            "Give the folder of a pack, or owner/name.",
        )
    folder = snapshot(
        id_or_path,
        # the client warns where nothing matches, which of a subfolder is no mistake
        [*(str(sub / name) for name in file_names), *(["config.json"] if sub.parts else [])],
        doing=fetching(id_or_path, revision),
        revision=revision,
        token=token,
        cache_dir=cache_dir,
    )
    origin = HubCommit(id_or_path, folder.name, str(sub) if sub.parts else None)
    return Place(folder / sub, folder.parent.parent, origin)


def inside(subfolder: str | None) -> PurePosixPath:
    """A subfolder as a path, without parts where it is the whole.

    Raises:
        PackError: it leads out of the folder that it is meant to be in.
    """
    sub = PurePosixPath(subfolder or ".")
    if sub.is_absolute() or ".." in sub.parts or not {"\\", "\0"}.isdisjoint(str(sub)):
        raise _escape(subfolder)
    return sub


def _check_path(path: Path) -> None:
    """Raise a PackError where the system can have no such path: NUL, too long, or characters that are none."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except (OSError, ValueError) as error:
        raise PackError(
            f"{shown(str(path))} is no path: {error}.", "Give the folder of a pack, or its id on the Hub."
        ) from error


def _escape(subfolder: str | None) -> PackError:
    return PackError(f"The subfolder {subfolder!r} leads out of the pack's folder.", "Give a path inside it.")
