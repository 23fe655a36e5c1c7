"""What hypernet.json says: which base, linears and prompts a hypernetwork was trained for, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import Any

from hf_edit.errors import PackError
from hf_edit.files import strict_json
from hf_edit.prompting import Prompting


MANIFEST = "hypernet.json"
FORMAT = 1
MAX_STEPS, MAX_BLOCKS, MAX_WIDTH = 64, 64, 1 << 24
"""Far beyond any that was trained: what is announced must be small enough to be listed before it is compared."""
_REMEDY = "The file is damaged or was not written by hf_edit: get it anew from where it was published."

Shape = tuple[int, int]
"""(d_out, d_in)"""


@dataclass(frozen=True)
class Base:
    """The model whose keys and gradients it knows; `id` is None where it did not come from the Hub."""

    id: str | None
    model_type: str
    dtype: str
    fingerprint: str


@dataclass(frozen=True)
class Linear:
    """One linear that it edits, by its full module name."""

    name: str
    layer: int
    d_out: int
    d_in: int


@dataclass(frozen=True)
class Manifest:
    """What hypernet.json says. Holds no times and no paths, so that the same inputs give the same bytes.

    Args:
        steps: backward passes per batch that it was trained for.
        ranks: of each set of networks: one set for all steps, or one for each.
        blocks: of every network.
        linears: by ascending layer.
        config: the settings of the training.
        figures: what the training saw.
        files: name -> sha256.
    """

    format: int
    hf_edit_version: str
    method: str
    steps: int
    ranks: tuple[int, ...]
    blocks: int
    base: Base
    prompt_format: Prompting
    linears: tuple[Linear, ...]
    config: Mapping[str, Any]
    figures: Mapping[str, Any]
    versions: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def modules(self) -> dict[Shape, int]:
        """Shape -> how many linears have it."""
        return dict(Counter((linear.d_out, linear.d_in) for linear in self.linears))

    def tensors(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of every tensor that belongs to it, by name."""
        return dict(self._tensors())

    def _tensors(self) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
        for number, rank in enumerate(self.ranks):
            for (d_out, d_in), modules in self.modules.items():
                width, of = d_out + d_in, f"{number}.{d_out}x{d_in}"
                for block in range(self.blocks):
                    sizes = {"A": (width, rank), "B": (rank, width), "bias": (width,)}
                    sizes |= {"scale": (modules, width), "shift": (modules, width)}
                    yield from ((f"{of}.blocks.{block}.{name}", (size, "float32")) for name, size in sizes.items())
                yield from ((f"{of}.{name}", ((modules,), "float32")) for name in ("log_step", "log_ridge"))
                yield f"{of}.normaliser.count", ((), "int64")
                yield from ((f"{of}.normaliser.{name}", ((width,), "float64")) for name in ("mean", "squares"))

    def with_files(self, files: Mapping[str, bytes]) -> Manifest:
        """The same with the digests of these files."""
        return replace(self, files={name: sha256(data).hexdigest() for name, data in sorted(files.items())})

    def to_bytes(self) -> bytes:
        """The content of hypernet.json."""
        return strict_json.dumps(asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read and check hypernet.json.

        Raises:
            PackError: it is not one, of a later format, or announces what cannot be.
        """
        body = strict_json.loads(data, MANIFEST)
        if body.get("format") != FORMAT:
            raise PackError(
                f"{MANIFEST} has the format {body.get('format')!r}, and this hf_edit reads {FORMAT}.",
                "Update hf_edit, or get a hypernetwork of this format.",
            )
        manifest = strict_json.parse(cls, body, MANIFEST)
        _validate(manifest)
        return manifest


def _validate(manifest: Manifest) -> None:
    linears = manifest.linears
    _require(1 <= manifest.steps <= MAX_STEPS, f"{manifest.steps} steps")
    _require(len(manifest.ranks) in (1, manifest.steps), f"{len(manifest.ranks)} networks for {manifest.steps} steps")
    _require(all(1 <= rank <= MAX_WIDTH for rank in manifest.ranks), f"the ranks {list(manifest.ranks)[:5]}")
    _require(1 <= manifest.blocks <= MAX_BLOCKS, f"{manifest.blocks} blocks")
    _require(len(linears) > 0, "no linears")
    _require(len({linear.name for linear in linears}) == len(linears), "a linear twice")
    for linear in linears:
        _require(1 <= min(linear.d_out, linear.d_in) and max(linear.d_out, linear.d_in) <= MAX_WIDTH, f"{linear}")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise PackError(f"{MANIFEST} announces {problem}.", _REMEDY)
