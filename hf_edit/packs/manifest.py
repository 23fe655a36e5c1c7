"""The manifest, edit_pack.json: what a pack is, which base it belongs to, and digests of everything else in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hf_edit.errors import PackError
from hf_edit.files import strict_json
from hf_edit.models.fingerprint import DIGEST_DTYPES
from hf_edit.models.orientation import ORIENTATIONS, is_fused, matrix_shape, weight_name
from hf_edit.prompting import Prompting


FORMAT_VERSION = 1
GENERATIONS = 20
"""How far back a pack tells where it comes from, itself not counted: one that is added to daily must stay small."""
LAYOUTS = ("portable", "compact", "bf16", "sparse", "all-layers")
FUSED_LAYOUTS = ("portable", "bf16")
"""Those that can hold a change of fused experts: one rank for all, and whole factors."""
LONGEST_SIDE = 1 << 24
"""Of a weight: beyond any model's, and far below where sizes in bytes overflow."""

_NAME = "edit_pack.json"
_REMEDY = "The file is damaged or was not written by hf_edit: get the pack anew from where it was published."
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODULE = re.compile(r"\w+(\.\w+)*", re.ASCII)
_REPOSITORY = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)
_PLAIN = re.compile(r"\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Method:
    """The editing method and its full configuration, as JSON."""

    name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class BaseTensor:
    """A weight of the base that the pack changes, as stored there, with its digest per dtype."""

    shape: tuple[int, ...]
    dtype: str
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class Base:
    """The base model. `id` and `revision` are None where it did not come from the Hub."""

    id: str | None
    revision: str | None
    model_type: str
    dtype: str
    fingerprint: str
    tensors: Mapping[str, BaseTensor]


@dataclass(frozen=True)
class Module:
    """A changed map: the rank of its delta before padding and how the base stores its weight.

    Maps of fused experts go by the name of their parameter, others by that of their module.
    """

    rank: int
    orientation: str


@dataclass(frozen=True)
class Edits:
    """How many edits edits.jsonl lists and the digest of its bytes."""

    count: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What edit_pack.json says. Holds no times and no paths, so that the same inputs give the same bytes.

    `zero_filled` is said by the layout all-layers alone: the modules that the adapter holds and does not change, with
    their (d_out, d_in). `earlier` is said where there are some: the identities of packs that were taught before and
    are preserved (of edits in the weights the sha256 of their JSONL); the pack is meant to be used beside them.
    """

    hf_edit_version: str
    method: Method
    versions: Mapping[str, str]
    seed: int | None
    prompt_format: Prompting
    base: Base
    modules: Mapping[str, Module]
    edits: Edits
    receipt: Mapping[str, Any]
    parents: tuple[Any, ...] = ()
    layout: str = "portable"
    files: Mapping[str, str] = field(default_factory=dict)
    zero_filled: Mapping[str, tuple[int, ...]] | None = None
    earlier: tuple[str, ...] = ()

    def shape(self, module: str) -> tuple[int, int]:
        """(d_out, d_in) of a declared module."""
        return matrix_shape(self.weight(module).shape, self.modules[module].orientation)

    def weight(self, module: str) -> BaseTensor:
        """The weight of a declared module, as the base stores it."""
        return self.base.tensors[weight_name(module, self.modules[module].orientation)]

    @property
    def fused(self) -> tuple[str, ...]:
        """The declared modules that are parameters of fused experts."""
        return tuple(sorted(name for name, module in self.modules.items() if is_fused(module.orientation)))

    def lineage(self) -> dict[str, Any]:
        """What a pack made from this one says of it, as JSON; of its own ancestors the last generations."""
        return {
            "method": {"name": self.method.name, "config": dict(self.method.config)},
            "seed": self.seed,
            "edits": asdict(self.edits),
            "parents": _recent(self.parents, GENERATIONS - 1),
            **({"earlier": list(self.earlier)} if self.earlier else {}),
        }

    def identity(self) -> str:
        """By which a pack is known again in any layout: not of the factors, which differ a little between them."""
        ranks = {name: module.rank for name, module in self.modules.items()}
        return sha256(strict_json.dumps({**self.lineage(), "receipt": dict(self.receipt), "ranks": ranks}))

    def with_files(self, files: Mapping[str, bytes]) -> Manifest:
        """The same manifest for files of this content."""
        return replace(self, files={name: sha256(data) for name, data in files.items()})

    def to_bytes(self) -> bytes:
        """The content of edit_pack.json, closed by a digest of itself."""
        body = {"format_version": FORMAT_VERSION, **asdict(self)}
        for name, unsaid in (("zero_filled", None), ("earlier", ())):
            if getattr(self, name) == unsaid:
                del body[name]
        return strict_json.dumps({**body, "digest": sha256(strict_json.dumps(body))})

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read and validate.

        Raises:
            PackError: a newer format, a field missing, of the wrong type or out of range, or altered content.
        """
        body = strict_json.loads(data, _NAME)
        version, digest = body.get("format_version"), body.pop("digest", None)
        if type(version) is not int or version < 1:
            raise PackError(f"{_NAME}: format_version is {version!r}, not a positive integer.", _REMEDY)
        if version > FORMAT_VERSION:
            raise PackError(
                f"The pack has format version {version}; this hf_edit reads up to version {FORMAT_VERSION}.",
                "It was written by a newer hf_edit; upgrade: pip install -U hf-edit",
            )
        manifest = strict_json.parse(cls, {"zero_filled": None, "earlier": [], **body}, _NAME)
        _validate(manifest)
        if digest != sha256(strict_json.dumps(body)):
            raise PackError(f"{_NAME} was altered: its content has not the digest {digest!r}.", _REMEDY)
        return manifest


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


def _recent(parents: Any, generations: int) -> Any:
    """Ancestors down to so many generations. What a pack says of its parents is not checked, and stays as it is."""
    if not isinstance(parents, (list, tuple)):
        return parents
    return [
        {**parent, "parents": _recent(parent.get("parents"), generations - 1)}
        if isinstance(parent, Mapping)
        else parent
        for parent in (parents if generations else ())
    ]


def _validate(manifest: Manifest) -> None:
    """What types alone cannot say."""
    _require(manifest.layout in LAYOUTS, f"layout is {manifest.layout!r}, not one of {', '.join(LAYOUTS)}")
    base = manifest.base
    _require(base.id is None or _REPOSITORY.fullmatch(base.id) is not None, f"base: id is {base.id!r}")
    for name in (manifest.method.name, manifest.prompt_format.name, base.model_type, base.dtype):
        _require(_PLAIN.fullmatch(name) is not None, f"{name!r} is not a plain name")
    _require("peft" in manifest.versions, "versions lacks peft")
    _require(bool(manifest.modules), "modules is empty")
    _require(manifest.edits.count >= 1, f"edits: count is {manifest.edits.count}, below 1")
    for name, module in manifest.modules.items():
        _require(_MODULE.fullmatch(name) is not None, f"{name!r} is not the name of a module")
        _require(module.orientation in ORIENTATIONS, f"{name}: orientation is {module.orientation!r}")
    fused = any(is_fused(module.orientation) for module in manifest.modules.values())
    _require(not fused or manifest.layout in FUSED_LAYOUTS, f"the layout {manifest.layout} cannot hold fused experts")
    expected = {weight_name(name, module.orientation) for name, module in manifest.modules.items()}
    different = sorted(expected ^ set(base.tensors))
    _require(not different, f"modules and base: tensors disagree on {different[:3]}")
    for name, tensor in base.tensors.items():
        _require(_possible(tensor.shape), f"{name} has the shape {list(tensor.shape)}")
        _require(set(tensor.sha256) == set(DIGEST_DTYPES), f"{name} has digests for {sorted(tensor.sha256)}")
    for name, module in manifest.modules.items():
        shape, axes = manifest.weight(name).shape, 3 if is_fused(module.orientation) else 2
        _require(len(shape) == axes, f"{name}, stored as {module.orientation}, has the shape {list(shape)}")
        _require(axes == 2 or ("." in name and shape[0] >= 2), f"{name} is no parameter of several experts")
        limit = min(manifest.shape(name))
        _require(1 <= module.rank <= limit, f"{name}: rank is {module.rank}, outside 1..{limit}")
    filled = manifest.zero_filled or {}
    _require(
        (manifest.layout == "all-layers") == (manifest.zero_filled is not None), "zero_filled and layout disagree"
    )
    for name, shape in filled.items():
        _require(_MODULE.fullmatch(name) is not None, f"{name!r} is not the name of a module")
        _require(name not in manifest.modules, f"{name} is both changed and filled with zeros")
        _require(len(shape) == 2 and _possible(shape), f"{name} has the shape {list(shape)}")
    for name in manifest.files:
        _require(_PLAIN.fullmatch(name) is not None, f"files: {name!r} is not a plain file name")
    digests = [manifest.edits.sha256, *manifest.files.values(), *manifest.earlier]
    digests += [digest for tensor in base.tensors.values() for digest in tensor.sha256.values()]
    wrong = [digest for digest in digests if not _SHA256.fullmatch(digest)]
    _require(not wrong, f"{wrong[:1]} is not a sha256 digest")


def _possible(shape: tuple[int, ...]) -> bool:
    return bool(shape) and min(shape) >= 1 and max(shape) <= LONGEST_SIDE


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise PackError(f"{_NAME}: {problem}.", _REMEDY)
