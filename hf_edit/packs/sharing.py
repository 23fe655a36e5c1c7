"""Packs to the Hub and from it: what is published, and what of a repository becomes a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from hf_edit.errors import HubError, PackError
from hf_edit.files.atomic import write_directory
from hf_edit.files.reading import MAX_TENSOR_BYTES, PlainFolder
from hf_edit.hub.card import ENTRY, merged_card
from hf_edit.hub.client import HubCommit, is_repo_id
from hf_edit.hub.push import Changes, Published, push
from hf_edit.packs.card import MAX_ROWS
from hf_edit.packs.contents import (
    CARD,
    CONFIG,
    EDITS,
    FILES,
    MANIFEST,
    PackContents,
    from_folder,
    is_pack_file,
    read_edits,
    to_files,
)
from hf_edit.packs.locate import inside, locate
from hf_edit.packs.manifest import Manifest


SIGNATURES = "*.sig"


def publish(
    pack: PackContents,
    repo_id: str,
    *,
    layout: str,
    values: bool,
    base_model: str | None = None,
    subfolder: str | None = None,
    message: str | None = None,
    **options: Any,
) -> HubCommit:
    """Publish a pack; `EditPack.push_to_hub` says what the arguments are."""
    pack = pack if base_model is None else _of_base(pack, base_model)
    _check_base(pack)
    return _publish(to_files(pack, layout, values), pack, repo_id, subfolder, message, options)


def publish_folder(
    path: str | os.PathLike[str],
    repo_id: str,
    *,
    subfolder: str | None = None,
    message: str | None = None,
    **options: Any,
) -> HubCommit:
    """Publish a pack's folder byte for byte, so that signatures stay valid; only the card is merged.

    Raises:
        PackError: the folder is no sound pack.
        HubError: as `EditPack.push_to_hub`.
    """
    folder = locate(Path(path), file_names=()).of_pack()
    pack = from_folder(folder)
    _check_base(pack)
    return _publish(_files(folder, pack.manifest), pack, repo_id, subfolder, message, options)


def pull(
    id: str, out: str | os.PathLike[str], *, revision: str | None = None, subfolder: str | None = None
) -> tuple[PackContents, HubCommit | None]:
    """Check a pack of the Hub and copy it, byte for byte, to the folder `out`; a pack that is there is replaced.

    Raises:
        PackError: the pack is not sound, or `out` cannot be replaced or written.
        HubError: it could not be fetched.
    """
    place = locate(id, file_names=(*FILES, SIGNATURES), revision=revision, subfolder=subfolder)
    folder = place.of_pack()
    pack = from_folder(folder)
    write_directory(out, _files(folder, pack.manifest), marker=MANIFEST, known=is_pack_file)
    return pack, place.origin


def _files(folder: PlainFolder, manifest: Manifest) -> dict[str, bytes]:
    """The files of a pack that was checked: those its manifest lists, the card, and signatures."""
    there = os.listdir(folder.path)
    names = {
        *manifest.files,
        MANIFEST,
        *(name for name in there if name == CARD or PurePosixPath(name).match(SIGNATURES)),
    }
    return {name: folder.read(name, MAX_TENSOR_BYTES) for name in sorted(names)}


def _of_base(pack: PackContents, base_model: str) -> PackContents:
    """The pack with its base under another name. A commit of the former name says nothing of the new one."""
    base = pack.manifest.base
    if not is_repo_id(base_model) or os.path.exists(base_model):
        raise HubError(f"base_model is {base_model!r}, which is no id on the Hub.", "Write owner/name.")
    if base_model == base.id:
        return pack
    return replace(pack, manifest=replace(pack.manifest, base=replace(base, id=base_model, revision=None)))


def _check_base(pack: PackContents) -> None:
    if pack.manifest.base.id is None:
        raise HubError(
            f"The pack's base was loaded from {pack.base_path or 'memory'}, where nobody else has it, so "
            "AutoModelForCausalLM could not load the pack from the Hub.",
            "Say where on the Hub the same weights are: base_model='owner/name' (--base-model).",
        )


def _publish(
    files: Mapping[str, bytes],
    pack: PackContents,
    repo_id: str,
    subfolder: str | None,
    message: str | None,
    options: Mapping[str, Any],
) -> HubCommit:
    at = inside(subfolder)
    count = len(pack.edits)
    commit = push(
        repo_id,
        lambda there: _changes(files, pack, at, there),
        message=message or f"Edit pack of {count} edit{'' if count == 1 else 's'}",
        **options,
    )
    return replace(commit, subfolder=str(at) if at.parts else None)


def _news(pack: PackContents, at: PurePosixPath, there: Published) -> str:
    """What changed since the pack that is published there, as an entry of its card; empty where nothing did.

    Anybody may have published that: what cannot be read as a pack is not compared.
    """
    from hf_edit.compose.diff import changelog  # upward: comparing packs is not theirs

    manifest, edits = (there.read(str(at / name)) for name in (MANIFEST, EDITS))
    if manifest is None or edits is None:
        return ""
    try:
        before = Manifest.from_bytes(manifest), read_edits(edits)
    except PackError:
        return ""
    lines = changelog(before, (pack.manifest, pack.edits))
    more = [f"- and {len(lines) - MAX_ROWS} more"] if len(lines) > MAX_ROWS else []
    return "\n".join([f"{ENTRY}Since {there.commit[:7]}", "", *lines[:MAX_ROWS], *more]) if lines else ""


def _changes(files: Mapping[str, bytes], pack: PackContents, at: PurePosixPath, there: Published) -> Changes:
    """The pack's files in place of those of a pack that is there; whatever else is there stays."""
    present = {path.name for path in map(PurePosixPath, there.names) if path.parent == at}
    if MANIFEST not in present and (foreign := sorted(present & {CONFIG, "config.json"})):
        raise HubError(
            f"{there.repo_id!r} holds a model or adapter that is no edit pack ({foreign[0]}).",
            "Push to another repository or subfolder.",
        )
    stale = {name for name in present - set(files) if is_pack_file(name) and name != CARD}  # a card is its owner's
    card = None
    if CARD in files:
        card = merged_card(files[CARD], there.read(str(at / CARD)), _news(pack, at, there))
    changes: dict[str, bytes | None] = {**files, **dict.fromkeys(stale)}
    if card is not None:
        changes[CARD] = card
    return {str(at / name): content for name, content in changes.items()}
