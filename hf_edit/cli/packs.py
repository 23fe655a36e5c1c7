"""Packs as verbs open them: a folder, or on the Hub `owner/name`, with the folder in it and `@revision` behind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hf_edit.errors import ConfigError


if TYPE_CHECKING:
    from hf_edit.packs.locate import Place
    from hf_edit.packs.pack import EditPack


def pack_at(id_or_path: str) -> EditPack:
    """The pack in a folder, or at `owner/name[/subfolder][@revision]` on the Hub.

    Raises:
        PackError, HubError: as `EditPack.from_pretrained`.
    """
    return open_pack(id_or_path)[0]


def parted(id_or_path: str) -> tuple[str, str | None, str | None]:
    """A repository, the folder in it and the revision; of what is here, its path alone, which may hold any sign."""
    from hf_edit.hub.client import is_repo_id

    if os.path.exists(id_or_path):
        return id_or_path, None, None
    before, _, after = id_or_path.rpartition("@")
    name, revision = (before, after) if before else (id_or_path, None)
    *repository, subfolder = name.split("/", 2)
    if len(repository) == 2 and is_repo_id("/".join(repository)):
        return "/".join(repository), subfolder, revision
    return name, None, revision


def check_revision(revision: str | None, model: str | None) -> None:
    """Refuse a revision of no base model: it would be taken for the pack's."""
    if revision is not None and model is None:
        raise ConfigError(
            f"--revision {revision} is of the base model, and no --model is given.",
            f"For a pack's own revision write owner/name@{revision}.",
        )


def open_pack(id_or_path: str) -> tuple[EditPack, Place]:
    """As `pack_at`, with the place that it was read from, for what only that shows.

    Raises:
        PackError, HubError: as `EditPack.from_pretrained`.
    """
    from hf_edit.packs.contents import FILES, from_folder
    from hf_edit.packs.locate import locate
    from hf_edit.packs.pack import EditPack
    from hf_edit.packs.sharing import SIGNATURES

    name, subfolder, revision = parted(id_or_path)
    place = locate(name, file_names=(*FILES, SIGNATURES), revision=revision, subfolder=subfolder)
    return EditPack(**vars(from_folder(place.of_pack())), origin=place.origin), place
