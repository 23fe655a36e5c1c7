"""What a pack consists of, and how that becomes files and is read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from hf_edit.edits import Edit, EditSet
from hf_edit.errors import InvalidEditError, PackError
from hf_edit.files import strict_json
from hf_edit.files.reading import (
    MAX_JSON_BYTES,
    MAX_TENSOR_BYTES,
    PlainFolder,
    header_limit,
    read_tensors,
    write_tensors,
)
from hf_edit.hub.card import merged_card
from hf_edit.methods.base import EditSource
from hf_edit.packs import layout as layouts
from hf_edit.packs.card import model_card
from hf_edit.packs.evaluation import Evaluation, factors_digest
from hf_edit.packs.manifest import Manifest, sha256
from hf_edit.packs.values import read_source, source_tensors
from hf_edit.packs.verify import check_contents
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.validation import parse_json, shown


CONFIG, ADAPTER, MANIFEST, EDITS = "adapter_config.json", "adapter_model.safetensors", "edit_pack.json", "edits.jsonl"
VALUES, EVALUATION, CARD = "values.safetensors", "evaluation.json", "README.md"
MAX_CONFIG_BYTES = 64 << 20  # of the manifest and the adapter's configuration: no real one comes near
FILES = (CONFIG, ADAPTER, MANIFEST, EDITS, VALUES, EVALUATION, CARD)
_SMALLER = "Put fewer edits into a pack, or save it without values or evaluation."
_ANEW = "The pack is damaged: get it anew from where it was published."


@dataclass(frozen=True, eq=False)
class PackContents:
    """The data of a pack; `EditPack` says what each field is."""

    deltas: Mapping[str, LowRankDelta]
    edits: EditSet
    manifest: Manifest
    source: EditSource | None = None
    evaluation: Evaluation | None = None
    base_path: str | None = None

    @property
    def base(self) -> str | None:
        """Where the base is to be had: its id on the Hub, or the folder that it came from."""
        return self.manifest.base.id or self.base_path

    def check(self) -> None:
        """Raise a PackError if anything is undeclared, missing, of a wrong shape or not finite."""
        check_contents(self.manifest, self.deltas, self.edits, self.source)
        if self.evaluation is not None:
            self.evaluation.check()
            if self.evaluation.pack != factors_digest(self.deltas):
                raise PackError(f"{EVALUATION} holds figures of other factors than the pack's.", _ANEW)


def is_pack_file(name: str) -> bool:
    """Whether a file of this name belongs to a pack; `.sig` are detached signatures."""
    return name in FILES or name.endswith(".sig")


def to_files(pack: PackContents, layout: str, values: bool, card: bytes | None = None) -> dict[str, bytes]:
    """File name -> content; the same pack gives the same bytes.

    Args:
        card: one that is there already, of which the new one keeps what its owner wrote.

    Raises:
        PackError: the layout is unknown, the pack is not sound, it cannot be written in that layout, or a file would
            be larger than one that is read.
    """
    pack.check()
    manifest, deltas = layouts.laid_out(pack.manifest, pack.deltas, layout)
    files = {
        CONFIG: strict_json.dumps(layouts.adapter_config(manifest, pack.base)),
        ADAPTER: write_tensors(layouts.adapter_tensors(manifest, deltas)),
        EDITS: pack.edits.dumps().encode(),
    }
    if values and pack.source is not None:
        files[VALUES] = write_tensors(source_tensors(pack.source))
    evaluation = _still_measured(pack.evaluation, manifest, deltas)
    if evaluation is not None:
        files[EVALUATION] = strict_json.dumps(evaluation.to_json())
    files[MANIFEST] = manifest.with_files(files).to_bytes()
    for name, limit in _limits(manifest).items():
        if len(files.get(name, b"")) > limit:
            raise PackError(
                f"{name} would have {len(files[name])} bytes, more than the {limit} that are read.", _SMALLER
            )
    # the card is not among the digests: its owner may edit it
    return {**files, CARD: merged_card(model_card(manifest, pack.edits, deltas, evaluation), card)}


def _limits(manifest: Manifest) -> dict[str, int]:
    """The most bytes of each file but the card, when it is written and when it is read."""
    shapes = layouts.adapter_shapes(manifest).values()
    return {
        MANIFEST: MAX_CONFIG_BYTES,
        CONFIG: MAX_CONFIG_BYTES,
        ADAPTER: min(header_limit(len(shapes)) + sum(4 * prod(shape) for shape in shapes), MAX_TENSOR_BYTES),
        VALUES: MAX_TENSOR_BYTES,
        EDITS: MAX_JSON_BYTES,
        EVALUATION: MAX_JSON_BYTES,
    }


def _still_measured(
    evaluation: Evaluation | None, manifest: Manifest, deltas: Mapping[str, LowRankDelta]
) -> Evaluation | None:
    """The figures, where the factors that will be read back are the ones that they were measured on."""
    if evaluation is None:
        return None
    stored = layouts.read_deltas(manifest, layouts.adapter_tensors(manifest, deltas))
    return evaluation if evaluation.pack == factors_digest(stored) else None


def from_folder(folder: PlainFolder) -> PackContents:
    """Read and check everything that the manifest lists.

    Raises:
        PackError: a file is missing, altered, or holds what the manifest does not declare.
    """
    manifest = Manifest.from_bytes(folder.read(MANIFEST, MAX_CONFIG_BYTES))
    files = _read_listed(folder, manifest)
    base = _check_config(strict_json.loads(files[CONFIG], CONFIG), manifest)
    edits = read_edits(files[EDITS])
    adapter = read_tensors(files[ADAPTER], ADAPTER, len(layouts.adapter_shapes(manifest)))
    pack = PackContents(
        deltas=layouts.read_deltas(manifest, adapter),
        edits=edits,
        manifest=manifest,
        source=_read_values(files.get(VALUES), len(manifest.modules), len(edits)),
        evaluation=_read_evaluation(files.get(EVALUATION)),
        base_path=None if manifest.base.id else base,
    )
    pack.check()
    return pack


def _read_listed(folder: PlainFolder, manifest: Manifest) -> dict[str, bytes]:
    for name in (CONFIG, ADAPTER, EDITS):
        if name not in manifest.files:
            raise PackError(f"{MANIFEST} does not list {name}.", _ANEW)
    limits, files = _limits(manifest), {}
    for name, digest in manifest.files.items():
        if name not in FILES:
            raise PackError(f"{MANIFEST} lists {name}, which belongs to no pack.", _ANEW)
        files[name] = folder.read(name, limits.get(name, MAX_JSON_BYTES))
        if sha256(files[name]) != digest:
            raise PackError(f"{name} was altered: its digest is not the one in {MANIFEST}.", _ANEW)
    return files


def _check_config(config: dict[str, Any], manifest: Manifest) -> str | None:
    """Check that the configuration is the one that the manifest implies; returns the base that it names."""
    base = config.get("base_model_name_or_path")
    if not isinstance(base, (str, type(None))):
        raise PackError(f"{CONFIG}: base_model_name_or_path is {base!r}, not a text.", _ANEW)
    expected = layouts.adapter_config(manifest, manifest.base.id or base)
    for key in sorted(config.keys() | expected.keys()):
        found, implied = config.get(key), expected.get(key)
        if strict_json.dumps(found) != strict_json.dumps(implied):  # in Python True == 1 == 1.0
            raise PackError(f"{CONFIG}: {key} is {shown(found)}, but {MANIFEST} implies {shown(implied)}.", _ANEW)
    return base


def _read_values(data: bytes | None, modules: int, edits: int) -> EditSource | None:
    # of an edit, two tensors for each module at most
    return None if data is None else read_source(read_tensors(data, VALUES, 2 * edits * modules), edits)


def _read_evaluation(data: bytes | None) -> Evaluation | None:
    return None if data is None else Evaluation.from_json(strict_json.loads(data, EVALUATION), EVALUATION)


def read_edits(data: bytes) -> EditSet:
    """The content of edits.jsonl; PackError where it cannot be read."""
    try:
        return EditSet(Edit.from_json(parse_json(line)) for line in data.decode().split("\n") if line)
    except InvalidEditError as error:
        raise PackError(f"{EDITS}: {error.message}", _ANEW) from error
    except UnicodeDecodeError as error:
        raise PackError(f"{EDITS} is not UTF-8: {error}.", _ANEW) from error
