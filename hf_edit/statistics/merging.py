"""Statistics over the shards of one corpus, joined to those over the whole."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hf_edit.errors import ConfigError, StatisticsError
from hf_edit.statistics.collect import warn_of_few
from hf_edit.statistics.files import opened
from hf_edit.statistics.moments import SecondMoments
from hf_edit.statistics.shards import Shard
from hf_edit.statistics.store import cache_folder, save


def merge(folders: Sequence[Path]) -> list[Path]:
    """Put the statistics over all shards into the cache, where those of a single collection would lie.

    Moments are added up in float64 by their numbers of tokens, so they are those of one collection up to rounding.
    A file that is there already is replaced.

    Args:
        folders: of the shards, as `obtain_shard` names them; a shard may be there once.

    Returns:
        The files written.

    Raises:
        StatisticsError: the folders hold no shards, not all of one corpus, one twice, those of another base or
            procedure, or of other linears; nothing is written.
    """
    every = [list(_files(folder)) for folder in folders]
    _check(folders, every)
    first = every[0][0]
    target = cache_folder() / "statistics" / first.base / first.recipe
    written = []
    for parts in zip(*every, strict=True):
        moments, tokens = _joined(parts)
        path = target / parts[0].path.name
        matrices = {part: {path.stem: moment.float()} for part, moment in moments.items()}
        save(SecondMoments(matrices, tokens, first.source), target)
        written.append(path)
        warn_of_few(tokens.get("text", 0), max(len(moment) for moment in moments.values()))
    return written


@dataclass(frozen=True)
class _File:
    """The moments of one linear over one shard, and what they are of."""

    path: Path
    base: str
    recipe: str
    source: str
    shard: Shard
    tokens: dict[str, int]


def _files(folder: Path) -> Iterator[_File]:
    """The files of a shard, by name."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise StatisticsError(
            f"{folder} holds no statistics.", "Give folders that `hf-edit stats collect --shard` made."
        )
    for path in paths:
        with opened(path) as file:
            metadata = file.metadata() or {}
            base, recipe = (metadata.get(name, "") for name in ("base", "recipe"))
            if "shard" not in metadata or not all(re.fullmatch("[0-9a-f]{16}", one) for one in (base, recipe)):
                raise StatisticsError(
                    f"{path} is no shard of a collection.", "Give folders that `hf-edit stats collect --shard` made."
                )
            try:
                shard = Shard.parsed(metadata["shard"])
            except ConfigError as error:
                raise ValueError(error.message) from error
            yield _File(path, base, recipe, metadata["source"], shard, json.loads(metadata["tokens"]))


def _check(folders: Sequence[Path], every: Sequence[Sequence[_File]]) -> None:
    """Refuse what is not all shards of one collection, each once."""
    reference = every[0][0]
    for folder, files in zip(folders, every, strict=True):
        for file in files:
            for what, ours, theirs in (
                ("another base model", reference.base, file.base),
                ("another procedure, text, seed or prompt format", reference.recipe, file.recipe),
                ("another number of shards", reference.shard.count, file.shard.count),
                ("another shard than its neighbours", files[0].shard, file.shard),
            ):
                if ours != theirs:
                    raise StatisticsError(
                        f"{file.path} is of {what}: {theirs}, not {ours}.", "Merge the shards of one collection."
                    )
        names, expected = {file.path.name for file in files}, {file.path.name for file in every[0]}
        if names != expected:
            raise StatisticsError(
                f"{folder} and {folders[0]} hold other linears: {', '.join(sorted(names ^ expected)[:3])}.",
                "Collect all shards for the same layers.",
            )
    seen = Counter(files[0].shard.number for files in every)
    twice = [number for number, count in seen.items() if count > 1]
    if twice:
        raise StatisticsError(
            f"Shard {twice[0]}/{reference.shard.count} is given {seen[twice[0]]} times.", "Give each shard once."
        )
    absent = [number for number in range(1, reference.shard.count + 1) if number not in seen]
    if absent:
        raise StatisticsError(
            f"{len(absent)} of {reference.shard.count} shards are missing, the first of them {absent[0]}.",
            f"Collect it with --shard {absent[0]}/{reference.shard.count}, and merge all.",
        )


def _joined(files: Sequence[_File]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Part -> moment (d_in, d_in) in float64, and number of tokens, over all shards of a linear."""
    sums: dict[str, Tensor] = {}
    tokens: Counter[str] = Counter()
    for one in files:
        with opened(one.path) as file:
            for part, count in one.tokens.items():
                total = count * file.get_tensor(part).double()
                sums[part] = sums[part] + total if part in sums else total
                tokens[part] += count
    return {part: total / tokens[part] for part, total in sums.items()}, dict(tokens)
