"""Statistics from a repository on the Hub into the cache: all that are asked for and sound, or none if one is not.

A repository is laid out as the cache is, `<base>/<recipe>/<linear>.safetensors`.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hf_edit.errors import StatisticsError
from hf_edit.hub.fetch import Listing, download, listing
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Progress, Silent
from hf_edit.statistics.corpus import CORPUS
from hf_edit.statistics.files import keeping_in
from hf_edit.statistics.received import check_corpus, check_moments, size_limit


def offered(
    repo_id: str, model: EditableModel, base: str, *, revision: str | None = None, token: str | bool | None = None
) -> Listing:
    """What a repository has of this base: files that are named as the statistics of a linear, or a corpus.

    Args:
        base: the name of its folder in the cache.

    Raises:
        HubError: the repository cannot be listed.
    """
    there = listing(repo_id, revision=revision, token=token)
    known = {CORPUS, *(f"{linear.name}.safetensors" for linear in model.linears)}
    pattern = re.compile(rf"{base}/[0-9a-f]{{16}}/(.+)")
    return _only(there, [name for name in there.sizes if (match := pattern.fullmatch(name)) and match[1] in known])


def fetch(
    repo_id: str,
    there: Listing,
    model: EditableModel,
    folder: Path,
    progress: Progress | None = None,
    *,
    token: str | bool | None = None,
) -> list[Path]:
    """Put into the cache what it lacks of what is `offered`; what it has already is not replaced.

    Args:
        folder: of the cache, that which holds a folder for each base.

    Returns:
        The new files.

    Raises:
        StatisticsError: a file is no second moment or corpus of this base, or the cache cannot be written.
        HubError: a file could not be fetched.
    """
    linears = {f"{linear.name}.safetensors": linear for linear in model.linears}
    lacking = {name: linears.get(Path(name).name) for name in sorted(there.sizes) if not (folder / name).exists()}
    for name, linear in lacking.items():
        if there.sizes[name] > size_limit(linear):
            raise StatisticsError(
                f"{name} in {repo_id!r} has {there.sizes[name]} bytes, more than {size_limit(linear)}.",
                "It holds something else than statistics: tell who published it.",
            )
    if not lacking:
        return []
    progress = progress or Silent()
    progress.stage("statistics: from the Hub", len(lacking))
    with keeping_in(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pull.", dir=folder) as temporary:
            download(repo_id, there.commit, lacking, Path(temporary), token=token)
            for name, linear in lacking.items():
                if linear is None:
                    check_corpus(Path(temporary) / name, model)
                else:
                    check_moments(Path(temporary) / name, linear)
            for name in lacking:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(temporary) / name, folder / name)
    progress.step(len(lacking))
    return [folder / name for name in lacking]


def _only(there: Listing, names: Sequence[str]) -> Listing:
    digests = {name: there.digests[name] for name in names if name in there.digests}
    return Listing(there.commit, {name: there.sizes[name] for name in names}, digests)
