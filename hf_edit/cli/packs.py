"""Packs as verbs open them: with the folder that they lie in, for what only the folder shows."""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from hf_edit.files.reading import PlainFolder
    from hf_edit.packs.pack import EditPack


def open_pack(id_or_path: str) -> tuple[EditPack, PlainFolder]:
    """A pack and its folder, on the Hub the one that it was fetched to.

    Raises:
        PackError, HubError: as `EditPack.from_pretrained`.
    """
    from hf_edit.packs.contents import FILES, from_folder
    from hf_edit.packs.locate import locate
    from hf_edit.packs.pack import EditPack
    from hf_edit.packs.sharing import SIGNATURES

    folder, origin = locate(id_or_path, file_names=(*FILES, SIGNATURES))
    return EditPack(**vars(from_folder(folder)), origin=origin), folder
