"""Statistics on disk, found again by the base model's fingerprint.

The folder `<cache>/statistics/<base>/<recipe>` holds the corpus and one safetensors file per linear. The recipe is a
digest of the settings and the prompt format, so that a layer asked for later is collected over the same tokens and
joins those collected before.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.models.fingerprint import running_fingerprint
from hf_edit.progress import Progress
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.collect import collect
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.corpus import Corpus, write_corpus
from hf_edit.statistics.files import opened, write
from hf_edit.statistics.invented import PROCEDURE
from hf_edit.statistics.moments import SecondMoments


CORPUS = "corpus.safetensors"


def cache_folder() -> Path:
    """Where hf_edit keeps what it can compute again: $HF_EDIT_CACHE, else ~/.cache/hf_edit."""
    return Path(os.environ.get("HF_EDIT_CACHE") or Path.home() / ".cache" / "hf_edit")


def obtain(
    model: EditableModel,
    prompts: PromptFormat,
    linears: Sequence[EditableLinear],
    config: StatisticsConfig,
    seed: int,
    progress: Progress,
) -> SecondMoments:
    """The statistics of `linears`, from the cache where they are, else collected and kept there."""
    folder = recipe_folder(model, prompts, config, seed)
    missing = [linear for linear in linears if not _path(folder, linear.name).exists()]
    if missing:
        corpus = obtain_corpus(model, prompts, config, seed, progress)
        save(collect(model, corpus, missing, config.batch, progress), folder)
    return load(folder, [linear.name for linear in linears])


def obtain_corpus(
    model: EditableModel, prompts: PromptFormat, config: StatisticsConfig, seed: int, progress: Progress
) -> Corpus:
    """What statistics are taken over, from the cache if it is there, else written and kept there."""
    path = recipe_folder(model, prompts, config, seed) / CORPUS
    if not path.exists():
        corpus = write_corpus(model, prompts, config, seed, progress)
        write(corpus.tensors(), {"source": corpus.source}, path)
    with opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return Corpus.from_tensors(tensors, (file.metadata() or {})["source"])


def save(moments: SecondMoments, folder: Path) -> None:
    """One file per linear, each written whole or not at all.

    Raises:
        StatisticsError: the folder cannot be written.
    """
    metadata = {"source": moments.source, "tokens": json.dumps(dict(moments.tokens), sort_keys=True)}
    names = {name for matrices in moments.matrices.values() for name in matrices}
    for name in sorted(names):
        tensors = {
            part: matrices[name].contiguous() for part, matrices in moments.matrices.items() if name in matrices
        }
        write(tensors, metadata, _path(folder, name))


def load(folder: Path, names: Sequence[str]) -> SecondMoments:
    """The statistics of the linears `names` in `folder`.

    Raises:
        StatisticsError: a file is missing or damaged.
    """
    tokens, source = {}, ""
    matrices: dict[str, OnDisk] = {}
    for name in names:
        path = _path(folder, name)
        with opened(path) as file:
            entry = _entry(path, file)
            tokens, source = entry.tokens, entry.source
            for part in file.keys():  # noqa: SIM118 (not a dict)
                matrices.setdefault(part, OnDisk(part, {})).paths[name] = path
    return SecondMoments(matrices, tokens, source)


@dataclass(frozen=True)
class OnDisk(Mapping[str, Tensor]):
    """Linear name -> the matrix of one part, read at every look: all of them at once can outweigh a small model."""

    part: str
    paths: dict[str, Path]

    def __getitem__(self, name: str) -> Tensor:
        with opened(self.paths[name]) as file:
            matrix: Tensor = file.get_tensor(self.part)
            return matrix

    def __contains__(self, name: object) -> bool:
        return name in self.paths

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Stored:
    """One file of the cache."""

    path: Path
    linear: str
    source: str
    tokens: dict[str, int]


def stored(model: EditableModel) -> list[Stored]:
    """What the cache holds for this base, by recipe and layer.

    Raises:
        StatisticsError: a file is damaged.
    """
    layers = {f"{linear.name}.safetensors": linear.layer for linear in model.linears}
    paths = [path for path in base_folder(model).glob("*/*.safetensors") if path.name in layers]
    entries = []
    for path in sorted(paths, key=lambda path: (path.parent, layers[path.name])):
        with opened(path) as file:
            entries.append(_entry(path, file))
    return entries


def _entry(path: Path, file: Any) -> Stored:
    """What an open file says of itself; KeyError or ValueError where it does not."""
    metadata = file.metadata() or {}
    tokens = json.loads(metadata["tokens"])
    return Stored(path, path.name.removesuffix(".safetensors"), metadata["source"], tokens)


def base_folder(model: EditableModel) -> Path:
    """Where the statistics of what this model computes lie, a folder for each recipe."""
    return cache_folder() / "statistics" / running_fingerprint(model.model)[:16]


def recipe_folder(model: EditableModel, prompts: PromptFormat, config: StatisticsConfig, seed: int) -> Path:
    """Where the statistics of this base under these settings lie, if they were collected."""
    model_type = model.model.config.model_type  # equal weights in another architecture give other keys
    parts = [PROCEDURE, model_type, config.to_json(), seed, _text_digest(config.text), prompts.fingerprint()]
    recipe = json.dumps(parts, sort_keys=True)
    return base_folder(model) / hashlib.sha256(recipe.encode()).hexdigest()[:16]


def _text_digest(text: str) -> str:
    """A file's contents are part of the recipe: an edited file is another source."""
    try:
        return hashlib.sha256(Path(text).read_bytes()).hexdigest()
    except (OSError, ValueError):  # "self", a dataset, or a file that cannot be read, which collecting will tell
        return ""


def _path(folder: Path, linear: str) -> Path:
    return folder / f"{linear}.safetensors"
