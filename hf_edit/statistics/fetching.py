"""Statistics from a repository on the Hub into the cache: all that are asked for and sound, or none if one is not.

A repository is laid out as the cache is, `<base>/<recipe>/<linear>.safetensors`.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from hf_edit.errors import HfEditWarning, HubError, StatisticsError
from hf_edit.hub.fetch import Listing, download, listing
from hf_edit.models.editable import EditableModel
from hf_edit.models.fingerprint import dtype_name
from hf_edit.processes import Processes
from hf_edit.progress import Progress, Silent
from hf_edit.statistics.corpus import CORPUS
from hf_edit.statistics.files import keeping_in
from hf_edit.statistics.received import check_corpus, check_moments, size_limit


REPOSITORY = "HF_EDIT_STATISTICS"
"""The variable with the repository where statistics are looked for, where the settings name none."""


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


def look_up(repo: str, model: EditableModel, recipe: Path, names: Sequence[str], progress: Progress) -> None:
    """Fetch what the cache lacks of one recipe, if a repository has it, before it is collected.

    The corpus comes along, so that whatever is collected beside it later is over the same tokens. Several processes
    ask once, and fetch once for each disk.

    Args:
        repo: owner/name, or owner/name@revision.
        recipe: the folder of the cache.
        names: of files that are wanted beside the corpus.

    Warns:
        HfEditWarning: the repository has nothing of this recipe, or over another corpus than the cache.

    Raises:
        StatisticsError: a file is unsound, or the cache cannot be written.
        HubError: the repository could not be read.
    """
    processes = Processes.joined(model.device)
    repo_id, _, revision = repo.partition("@")
    base = recipe.parent

    def found() -> Listing:
        there = offered(repo_id, model, base.name, revision=revision or None)
        return _of_recipe(there, repo, model, recipe, names)

    try:
        there = processes.once(found)
        processes.once(lambda: fetch(repo_id, there, model, base.parent, progress))
        # by now only those lack something whose disk is another
        processes.map(lambda _: fetch(repo_id, there, model, base.parent, progress), range(processes.count))
    except (HubError, StatisticsError) as error:
        collect = f"To have statistics collected instead, leave out statistics.repo and {REPOSITORY}."
        raise type(error)(error.message, f"{error.remedy} {collect}") from error


def _of_recipe(there: Listing, repo: str, model: EditableModel, recipe: Path, names: Sequence[str]) -> Listing:
    """What is wanted of a recipe and there; nothing where it is over other tokens than what the cache has."""
    folder = f"{recipe.parent.name}/{recipe.name}"
    here = [name for name in there.sizes if name.startswith(f"{folder}/")]
    ours, theirs = recipe / CORPUS, f"{folder}/{CORPUS}"
    if not here and names:  # a corpus alone is soon written, and the moments over it are asked for next
        dtype = dtype_name(model.model.dtype)
        _tell(
            f"{repo!r} has no statistics of this model in {dtype} under these settings ({folder}): they are collected."
        )
    elif theirs in here and ours.exists() and there.digests.get(theirs) != _sha256(ours):
        _tell(f"{repo!r} has statistics over another corpus than {ours}: what is missing is collected over this one.")
        here = []
    return _only(there, [name for name in here if Path(name).name in (CORPUS, *names)])


def _only(there: Listing, names: Sequence[str]) -> Listing:
    digests = {name: there.digests[name] for name in names if name in there.digests}
    return Listing(there.commit, {name: there.sizes[name] for name in names}, digests)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tell(message: str) -> None:
    warnings.warn(message, HfEditWarning, stacklevel=2)
