"""Packs as verbs open them: a folder, or `owner/name` on the Hub, with `@revision` behind it if one is meant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_edit.errors import ConfigError


if TYPE_CHECKING:
    from hf_edit.packs.locate import Place
    from hf_edit.packs.pack import EditPack


def pack_at(id_or_path: str) -> EditPack:
    """The pack in a folder, or at `owner/name[@revision]` on the Hub.

    Raises:
        PackError, HubError: as `EditPack.from_pretrained`.
    """
    return open_pack(id_or_path)[0]


def _parted(id_or_path: str) -> tuple[str, str | None]:
    """A name and the revision behind it; a folder's name may hold the sign."""
    name, sign, revision = id_or_path.rpartition("@")
    return (name, revision) if sign and name and not Path(id_or_path).exists() else (id_or_path, None)


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

    name, revision = _parted(id_or_path)
    place = locate(name, file_names=(*FILES, SIGNATURES), revision=revision)
    return EditPack(**vars(from_folder(place.of_pack())), origin=place.origin), place
