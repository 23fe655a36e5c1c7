"""The receipt of a merge: what gives the weights back that were there before, bit for bit.

On disk it is a folder of two files. `receipt.json` says what was merged and names every changed weight, with its
digests before and after. `before.safetensors` holds per weight what leads back: the difference in bits, compressed, or
the weight itself where that is smaller. `save_pretrained` of a merged model puts this folder, `merge_receipt`, among
the model's files.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_edit._version import __version__
from hf_edit.compose import bits
from hf_edit.errors import PackError
from hf_edit.files import strict_json
from hf_edit.files.atomic import write_directory
from hf_edit.files.reading import MAX_TENSOR_BYTES, PlainFolder, header_limit, read_tensors, write_tensors
from hf_edit.models.fingerprint import dtype_name
from hf_edit.packs.locate import locate
from hf_edit.packs.manifest import sha256


FOLDER = "merge_receipt"
FORMAT_VERSION = 1
DIFFERENCE, PLAIN = "difference", "plain"

_RECEIPT, _BEFORE = "receipt.json", "before.safetensors"
_DTYPES = {dtype_name(dtype): dtype for dtype in bits.DTYPES}
_WEIGHT = re.compile(r"\w+(\.\w+)+", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ANEW = "The receipt is damaged or was not written by hf_edit: get it, or the base model, anew."


@dataclass(frozen=True)
class MergedWeight:
    """A weight that a merge changed, its sha256 before and after, and how the receipt holds what was before."""

    shape: tuple[int, ...]
    dtype: str
    before: str
    after: str
    coding: str

    @property
    def bytes(self) -> int:
        """Size of the weight itself."""
        count = _DTYPES[self.dtype].itemsize
        for length in self.shape:
            count *= length
        return count

    def is_before(self, weight: Tensor) -> bool:
        """Whether `weight` is, to the bit, what the merge found."""
        return self._is(weight, self.before)

    def is_after(self, weight: Tensor) -> bool:
        """Whether `weight` is, to the bit, what the merge left."""
        return self._is(weight, self.after)

    def _is(self, weight: Tensor, digest: str) -> bool:
        present = dtype_name(weight.dtype), tuple(weight.shape)
        return present == (self.dtype, self.shape) and bits.digest(weight) == digest


@dataclass(frozen=True)
class MergedPack:
    """What was merged.

    Args:
        digest: by which the pack is known again; None where only an attached adapter was known.
        adapter: the name under which it was attached, if it was.
        edits: all that it teaches, as JSON.
        lineage: method, settings and parents, as `Manifest.lineage` has them.
    """

    digest: str | None
    adapter: str | None
    edits: tuple[Any, ...]
    lineage: Mapping[str, Any] | None


@dataclass(frozen=True)
class Merge:
    """One merge: its packs, how it rounded, and its loss per weight and in all, as JSON."""

    packs: tuple[MergedPack, ...]
    rounding: str
    loss: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class MergeReceipt:
    """What `merge` did to a model, and the way back.

    Args:
        merges: in the order in which they were made; more than one in the receipt that `save_pretrained` writes of a
            model into which packs were merged one after the other.
        weights: name in the base -> what became of it.
        backup: name -> what gives the weight back: (n,) uint8 if coded as a difference, else the weight before.
    """

    merges: tuple[Merge, ...]
    weights: Mapping[str, MergedWeight]
    backup: Mapping[str, Tensor]

    def before(self, name: str, after: Tensor) -> Tensor:
        """The weight `name` before the merge, on the CPU, from what it is after.

        Raises:
            PackError: the backup does not give the weight that the receipt announces.
        """
        record, backup = self.weights[name], self.backup[name]
        before = bits.undone(backup, after) if record.coding == DIFFERENCE else backup
        if bits.digest(before) != record.before:
            raise PackError(f"The backup of {name} is not the weight that was there before the merge.", _ANEW)
        return before

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the receipt to the sub-folder `merge_receipt` of a folder, atomically.

        Raises:
            PackError: it cannot be written there, or something else is there.
        """
        backup = write_tensors(dict(self.backup))
        body = {
            "format_version": FORMAT_VERSION,
            "hf_edit_version": __version__,
            "merges": [asdict(merge) for merge in self.merges],
            "weights": {name: asdict(record) for name, record in self.weights.items()},
            "backup": sha256(backup),
        }
        files = {_RECEIPT: strict_json.dumps({**body, "digest": sha256(strict_json.dumps(body))}), _BEFORE: backup}
        write_directory(Path(folder) / FOLDER, files, marker=_RECEIPT, known=files.__contains__)

    @staticmethod
    def remove(folder: str | os.PathLike[str]) -> None:
        """Take the receipt away that an earlier model left in a folder, if any."""
        with suppress(FileNotFoundError):
            shutil.rmtree(Path(folder) / FOLDER)

    @classmethod
    def load(cls, id_or_path: str | os.PathLike[str], revision: str | None = None) -> MergeReceipt:
        """Read the receipt beside a model, in a folder or on the Hub; it may have been written by anyone.

        Args:
            revision: branch, tag or commit on the Hub.

        Raises:
            PackError: there is none, it is damaged, or holds what it does not declare.
            HubError: it could not be fetched.
        """
        receipt = cls.beside(id_or_path, revision)
        if receipt is None:
            raise PackError(
                f"{id_or_path} has no folder {FOLDER}.",
                "Give a model that hf_edit merged packs into; without its receipt, load the base anew.",
            )
        return receipt

    @classmethod
    def beside(cls, id_or_path: str | os.PathLike[str], revision: str | None = None) -> MergeReceipt | None:
        """As `load`, but None where there is no receipt: nothing was merged into the model."""
        place = locate(id_or_path, file_names=(_RECEIPT, _BEFORE), subfolder=FOLDER, revision=revision)
        return cls._read(place.opened()) if place.path.is_dir() else None

    @classmethod
    def _read(cls, folder: PlainFolder) -> MergeReceipt:
        body = strict_json.loads(folder.read(_RECEIPT), _RECEIPT)
        digest = body.pop("digest", None)
        version = strict_json.parse(_Version, body, _RECEIPT).format_version
        if version != FORMAT_VERSION:
            raise PackError(
                f"The receipt has format version {version}; this hf_edit reads version {FORMAT_VERSION}.",
                "If it was written by a newer hf_edit, upgrade: pip install -U hf-edit",
            )
        record = strict_json.parse(_Record, body, _RECEIPT)
        _require(digest == sha256(strict_json.dumps(body)), "its content is not that of its digest")
        for name, weight in record.weights.items():
            _check_weight(name, weight)
        receipt = cls(record.merges, record.weights, _read_backup(folder, record))
        receipt._check_backup()
        return receipt

    def _check_backup(self) -> None:
        _require(set(self.backup) == set(self.weights), f"{_BEFORE} holds other weights than it declares")
        for name, weight in self.weights.items():
            dtype, shape = dtype_name(self.backup[name].dtype), tuple(self.backup[name].shape)
            coded = dtype == "uint8" and len(shape) == 1
            plain = (dtype, shape) == (weight.dtype, weight.shape)
            _require(coded if weight.coding == DIFFERENCE else plain, f"{name} is backed up as {dtype} of {shape}")


@dataclass(frozen=True)
class _Version:
    """What every version of receipt.json says."""

    format_version: int


@dataclass(frozen=True)
class _Record:
    """What receipt.json says."""

    hf_edit_version: str
    merges: tuple[Merge, ...]
    weights: Mapping[str, MergedWeight]
    backup: str


def coded(before: Tensor, after: Tensor) -> tuple[MergedWeight, Tensor]:
    """The record of one changed weight and its backup: whatever is smaller."""
    code = bits.difference(before, after)
    smaller = code.numel() < before.numel() * before.element_size()
    record = MergedWeight(
        tuple(before.shape),
        dtype_name(before.dtype),
        bits.digest(before),
        bits.digest(after),
        DIFFERENCE if smaller else PLAIN,
    )
    return record, code if smaller else before.detach().to("cpu", copy=True).contiguous()


def joined(receipts: Sequence[MergeReceipt], now: Mapping[str, Tensor]) -> MergeReceipt:
    """One receipt that undoes them all.

    Args:
        receipts: in the order of the merges.
        now: name -> the weight as it is after the last of them.
    """
    if len(receipts) == 1:
        return receipts[0]
    entries = {}
    for name in sorted({name for receipt in receipts for name in receipt.weights}):
        entries[name] = coded(original(receipts, name, now[name]), now[name])
    return MergeReceipt(
        tuple(merge for receipt in receipts for merge in receipt.merges),
        {name: record for name, (record, _) in entries.items()},
        {name: backup for name, (_, backup) in entries.items()},
    )


def original(receipts: Sequence[MergeReceipt], name: str, now: Tensor) -> Tensor:
    """The weight `name` before the first of these merges, from what it is after the last."""
    for receipt in reversed(receipts):
        if name in receipt.weights:
            now = receipt.before(name, now)
    return now


def left(receipts: Sequence[MergeReceipt]) -> dict[str, MergedWeight]:
    """Weight name -> its record in the last of these merges that changed it."""
    return {name: weight for receipt in receipts for name, weight in receipt.weights.items()}


def _read_backup(folder: PlainFolder, record: _Record) -> dict[str, Tensor]:
    limit = header_limit(len(record.weights)) + sum(weight.bytes for weight in record.weights.values())
    data = folder.read(_BEFORE, min(limit, MAX_TENSOR_BYTES))
    _require(sha256(data) == record.backup, f"{_BEFORE} was altered")
    return read_tensors(data, _BEFORE, len(record.weights))


def _check_weight(name: str, weight: MergedWeight) -> None:
    """What types alone cannot say."""
    _require(_WEIGHT.fullmatch(name) is not None, f"{name!r} is not the name of a weight")
    _require(len(weight.shape) in (2, 3) and min(weight.shape) >= 1, f"{name} has the shape {list(weight.shape)}")
    _require(weight.dtype in _DTYPES, f"{name} has the dtype {weight.dtype!r}")
    _require(weight.coding in (DIFFERENCE, PLAIN), f"{name} is coded as {weight.coding!r}")
    for digest in (weight.before, weight.after):
        _require(_SHA256.fullmatch(digest) is not None, f"{name}: {digest!r} is not a sha256 digest")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise PackError(f"{_RECEIPT}: {problem}.", _ANEW)
