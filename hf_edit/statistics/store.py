"""Statistics on disk, found again by the base model's fingerprint.

The folder `<cache>/statistics/<base>/<recipe>` holds the corpus and one safetensors file per linear. The recipe is a
digest of the settings and the prompt format, so that a layer asked for later is collected over the same tokens and
joins those collected before. Below it, `unfinished` has what a killed collection had come to, and `shards` the moments
of parts of the corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_edit.errors import ConfigError
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.models.fingerprint import running_fingerprint
from hf_edit.processes import Processes
from hf_edit.progress import Progress
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.collect import collect, sums_name
from hf_edit.statistics.compression import Compressed, Compression, moment_of, parts_of
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.corpus import CORPUS, WRITTEN, Corpus, tokens_of, write_corpus
from hf_edit.statistics.fetching import REPOSITORY, look_up
from hf_edit.statistics.files import opened, write
from hf_edit.statistics.invented import PROCEDURE
from hf_edit.statistics.moments import SecondMoments
from hf_edit.statistics.received import is_public
from hf_edit.statistics.shards import Shard
from hf_edit.statistics.unfinished import Unfinished


UNFINISHED, SHARDS = "unfinished", "shards"


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
    """The statistics of `linears`, from the cache where they are, else fetched or collected, and kept there.

    Several processes collect together. One that was killed goes on where it was.

    Raises:
        StatisticsError, HubError: a file is damaged, or the repository that the user named failed.
    """
    folder = recipe_folder(model, prompts, config, seed)
    _look_up(model, linears, config, folder, progress)
    _collected(model, prompts, linears, config, seed, progress, folder, Shard())
    return load(folder, [linear.name for linear in linears])


def obtain_shard(
    model: EditableModel,
    prompts: PromptFormat,
    linears: Sequence[EditableLinear],
    config: StatisticsConfig,
    seed: int,
    progress: Progress,
    shard: Shard,
) -> Path:
    """The folder with the statistics of `linears` over one part of the corpus, which `merge` joins to the others."""
    recipe = recipe_folder(model, prompts, config, seed)
    _look_up(model, (), config, recipe, progress)
    folder = recipe / SHARDS / f"{shard.number}-of-{shard.count}"
    _collected(model, prompts, linears, config, seed, progress, folder, shard)
    return folder


def _collected(
    model: EditableModel,
    prompts: PromptFormat,
    linears: Sequence[EditableLinear],
    config: StatisticsConfig,
    seed: int,
    progress: Progress,
    folder: Path,
    shard: Shard,
) -> None:
    """Put into `folder` what it lacks of the statistics of `linears` over this part of the corpus."""
    processes = Processes.joined(model.device)

    def lacking() -> list[EditableLinear]:
        return [linear for linear in linears if not _path(folder, linear.name).exists()]

    wanted = {name for names in processes.gathered([one.name for one in lacking()]) for name in names}
    missing = [linear for linear in linears if linear.name in wanted]
    if not missing:
        return
    recipe = recipe_folder(model, prompts, config, seed)
    corpus = _kept_corpus(model, prompts, config, seed, progress)
    unfinished = Unfinished(recipe / UNFINISHED)
    moments = collect(model, corpus, missing, config.batch, progress, shard, unfinished)
    where = {} if shard.count == 1 else {"base": recipe.parent.name, "recipe": recipe.name, "shard": str(shard)}
    _on_every_disk(processes, lambda: not lacking(), lambda: save(moments, folder, where))
    unfinished.remove(sums_name(missing, shard.split(processes)))


def obtain_corpus(
    model: EditableModel, prompts: PromptFormat, config: StatisticsConfig, seed: int, progress: Progress
) -> Corpus:
    """What statistics are taken over, from the cache if it is there, else fetched or written, and kept there.

    Raises:
        StatisticsError, HubError: as `obtain`.
    """
    _look_up(model, (), config, recipe_folder(model, prompts, config, seed), progress)
    return _kept_corpus(model, prompts, config, seed, progress)


def _look_up(
    model: EditableModel,
    linears: Sequence[EditableLinear],
    config: StatisticsConfig,
    recipe: Path,
    progress: Progress,
) -> None:
    """Look for what the cache lacks of `linears`, or of the corpus if there are none, where the user says.

    Statistics of a private text are published nowhere.
    """
    if config.repo and not is_public(config.text):
        raise ConfigError(
            f"statistics.repo = {config.repo!r} does not go with statistics over a text file: none are published.",
            "Leave out one of the two.",
        )
    processes = Processes.joined(model.device)
    repo = processes.first(config.repo or os.environ.get(REPOSITORY))
    if not repo or not is_public(config.text):
        return
    wanted = [_path(recipe, linear.name) for linear in linears]
    if not all(processes.gathered(all(path.exists() for path in wanted or [recipe / CORPUS]))):
        look_up(repo, model, recipe, [path.name for path in wanted], progress)


def _kept_corpus(
    model: EditableModel, prompts: PromptFormat, config: StatisticsConfig, seed: int, progress: Progress
) -> Corpus:
    """The corpus from the cache if it is there, else written and kept there."""
    processes = Processes.joined(model.device)
    recipe = recipe_folder(model, prompts, config, seed)
    path = recipe / CORPUS
    if not all(processes.gathered(path.exists())):
        unfinished = Unfinished(recipe / UNFINISHED)
        # it may be on the first one's disk, and not on another's
        found = processes.once(lambda: _corpus(path) if path.exists() else None)
        if found is None:
            found = write_corpus(model, prompts, config, seed, progress, unfinished)
        _on_every_disk(processes, path.exists, lambda: write(found.tensors(), {"source": found.source}, path))
        unfinished.remove(*WRITTEN)
    return _corpus(path)


def _corpus(path: Path) -> Corpus:
    with opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return Corpus.from_tensors(tensors, (file.metadata() or {})["source"])


def _on_every_disk(processes: Processes, there: Callable[[], bool], write: Callable[[], None]) -> None:
    """Let the first process write what all have, and then those whose disk is another."""
    for turn in (processes.rank == 0, True):
        if turn and not there():
            write()
        processes.wait()


def save(moments: SecondMoments, folder: Path, where: Mapping[str, str] | None = None) -> None:
    """One file per linear, each written whole or not at all.

    Args:
        where: what else the files are to say of themselves.

    Raises:
        StatisticsError: the folder cannot be written.
    """
    tokens = json.dumps(dict(moments.tokens), sort_keys=True)
    metadata = {"source": moments.source, "tokens": tokens, **(where or {})}
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
            for part in parts_of(file.keys()):
                matrices.setdefault(part, OnDisk(part, {})).paths[name] = path
    return SecondMoments(matrices, tokens, source)


@dataclass(frozen=True)
class OnDisk(Mapping[str, Tensor]):
    """Linear name -> the matrix of one part, read at every look: all of them at once can outweigh a small model."""

    part: str
    paths: dict[str, Path]

    def __getitem__(self, name: str) -> Tensor:
        with opened(self.paths[name]) as file:
            held = [key for key in file.keys() if parts_of([key]) == [self.part]]  # noqa: SIM118 (not a dict)
            return moment_of({key: file.get_tensor(key) for key in held}, self.part)

    def __contains__(self, name: object) -> bool:
        return name in self.paths

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Stored:
    """One file of the cache.

    Args:
        tokens: part -> number of tokens.
        errors: part -> what compression cost, as `Compressed.error`; empty: it is whole.
    """

    path: Path
    linear: str
    source: str
    tokens: dict[str, int]
    errors: dict[str, float]


def stored(model: EditableModel) -> list[Stored]:
    """What the cache holds for this base, by recipe and layer.

    Raises:
        StatisticsError: a file is damaged.
    """
    return [entry for folder in sorted(base_folder(model).glob("*")) for entry in stored_in(folder, model)]


def stored_in(folder: Path, model: EditableModel) -> list[Stored]:
    """The same of one recipe or shard, by layer."""
    paths = [_path(folder, linear.name) for linear in sorted(model.linears, key=lambda linear: linear.layer)]
    return [_described(path) for path in paths if path.is_file()]


def _described(path: Path) -> Stored:
    with opened(path) as file:
        return _entry(path, file)


def _entry(path: Path, file: Any) -> Stored:
    """What an open file says of itself; KeyError or ValueError where it does not."""
    metadata = file.metadata() or {}
    tokens = json.loads(metadata["tokens"])
    errors = json.loads(metadata.get("errors", "{}"))
    return Stored(path, path.name.removesuffix(".safetensors"), metadata["source"], tokens, errors)


def compressed(entries: Iterable[Stored], how: Compression) -> list[Stored]:
    """Put the compressed form in place of each file; what is compressed already stays as it is.

    Returns:
        What the files then say.

    Raises:
        StatisticsError: a file is damaged or cannot be written.
    """
    return [entry if entry.errors else _compressed(entry.path, how) for entry in entries]


def _compressed(path: Path, how: Compression) -> Stored:
    tensors: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    with opened(path) as file:
        for part in parts_of(file.keys()):
            moment = file.get_tensor(part)
            small = Compressed.of(moment, how)
            tensors |= small.tensors(part)
            errors[part] = float(f"{small.error(moment):.4g}")
        metadata = {**(file.metadata() or {}), "errors": json.dumps(errors, sort_keys=True)}
    write(tensors, metadata, path)
    return _described(path)


def base_folder(model: EditableModel) -> Path:
    """Where the statistics of what this model computes lie, a folder for each recipe."""
    return cache_folder() / "statistics" / running_fingerprint(model.model)[:16]


def recipe_folder(model: EditableModel, prompts: PromptFormat, config: StatisticsConfig, seed: int) -> Path:
    """Where the statistics of this base under these settings lie, if they were collected."""
    model_type = model.model.config.model_type  # equal weights in another architecture give other keys
    settings = {**config.to_json(), "tokens": tokens_of(model, config)}
    parts = [PROCEDURE, model_type, settings, seed, _text_digest(config.text), prompts.fingerprint()]
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
