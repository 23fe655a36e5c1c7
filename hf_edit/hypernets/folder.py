"""A hypernetwork as files: what is written, and how anybody's files are read and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from hf_edit.errors import PackError
from hf_edit.files.atomic import recover, write_directory
from hf_edit.files.reading import MAX_TENSOR_BYTES, PlainFolder, read_tensors, write_tensors
from hf_edit.hub.client import HubCommit, is_repo_id
from hf_edit.hub.fetch import check_no_revision, fetching, snapshot
from hf_edit.hypernets.card import hypernet_card
from hf_edit.hypernets.manifest import MANIFEST, Manifest
from hf_edit.models.fingerprint import dtype_name
from hf_edit.validation import shown


WEIGHTS, CARD = "hypernet.safetensors", "README.md"
FILES = (MANIFEST, WEIGHTS, CARD)
MAX_MANIFEST_BYTES = 16 << 20
_ANEW = "The hypernetwork is damaged: get it anew from where it was published."


def to_files(manifest: Manifest, tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """File name -> content; the same hypernetwork gives the same bytes.

    Raises:
        PackError: the tensors are not those that the manifest announces, or not finite.
    """
    check_tensors(manifest, tensors)
    ours = {WEIGHTS: write_tensors({name: tensors[name].contiguous() for name in sorted(tensors)})}
    # the card is not among the digests: its owner may edit it
    return {**ours, MANIFEST: manifest.with_files(ours).to_bytes(), CARD: hypernet_card(manifest)}


def save(path: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
    """Put a hypernetwork's files into a folder, in place of those of one that is there, all or nothing.

    Raises:
        PackError: the folder holds something else, or cannot be written.
    """
    write_directory(path, files, marker=MANIFEST, known=lambda name: name in FILES)


def read(folder: PlainFolder) -> tuple[Manifest, dict[str, Tensor]]:
    """Read and check a hypernetwork.

    Raises:
        PackError: a file is missing, altered or hostile, or holds what the manifest does not announce.
    """
    manifest = Manifest.from_bytes(folder.read(MANIFEST, MAX_MANIFEST_BYTES))
    data = folder.read(WEIGHTS, MAX_TENSOR_BYTES)
    if manifest.files.get(WEIGHTS) != sha256(data).hexdigest():
        raise PackError(f"{WEIGHTS} is not the file that {MANIFEST} lists.", _ANEW)
    tensors = read_tensors(data, WEIGHTS)
    check_tensors(manifest, tensors)
    return manifest, tensors


def located(
    id_or_path: str | os.PathLike[str], *, revision: str | None = None, token: str | bool | None = None
) -> tuple[PlainFolder, HubCommit | None]:
    """The folder of a hypernetwork, and the commit that it is of where it came from the Hub.

    Raises:
        PackError: there is no such folder, here or on the Hub, or a revision is asked of one that is here.
        HubError: it could not be fetched.
    """
    name, path = os.fspath(id_or_path), Path(id_or_path)
    if "\0" not in name:
        recover(path)
        if path.exists():
            check_no_revision(path, revision)
            return PlainFolder(path), None
    if isinstance(id_or_path, os.PathLike) or not is_repo_id(name):
        raise PackError(
            f"{shown(name)} is no folder here, and no id of a repository on the Hub.",
            "Give the folder of a hypernetwork (hf-edit train makes one), or owner/name.",
        )
    folder = snapshot(name, FILES, doing=fetching(name, revision), revision=revision, token=token)
    if not (folder / MANIFEST).is_file():
        raise PackError(f"The repository {name!r} holds no hypernetwork.", "Check the name and the revision.")
    return PlainFolder(folder, within=folder.parent.parent), HubCommit(name, folder.name)


def check_tensors(manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    """Raise a PackError unless the tensors are those announced, in shape and dtype, and all of them numbers."""
    announced = manifest.tensors()
    odd = sorted(announced.keys() ^ tensors.keys())
    if odd:
        raise PackError(f"{WEIGHTS} has {'no' if odd[0] in announced else 'a tensor'} {shown(odd[0])}.", _ANEW)
    for name, (shape, dtype) in announced.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or dtype_name(tensor.dtype) != dtype:
            found = f"{dtype_name(tensor.dtype)} of shape {tuple(tensor.shape)}"
            raise PackError(f"{name} in {WEIGHTS} is {found}, not {dtype} of shape {shape}.", _ANEW)
        if not torch.isfinite(tensor).all():
            raise PackError(f"{name} in {WEIGHTS} holds NaN or infinity.", _ANEW)
        if name.endswith((".count", ".squares")) and (tensor < 0).any():
            raise PackError(f"{name} in {WEIGHTS} is negative.", _ANEW)
