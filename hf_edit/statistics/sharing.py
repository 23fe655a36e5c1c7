"""Statistics to the Hub and from it, so that nobody has to collect for a base that someone has collected for.

A repository is laid out as the cache is, `<base>/<recipe>/<linear>.safetensors`, and may hold any number of bases.
`statistics.json` says what is in it; the card is made from that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from hf_edit.errors import HubError, StatisticsError
from hf_edit.hub.card import merged_card
from hf_edit.hub.client import HubCommit, is_repo_id, repo_of
from hf_edit.hub.push import Changes, Published, push
from hf_edit.models.editable import EditableModel
from hf_edit.models.fingerprint import dtype_name
from hf_edit.statistics.corpus import CORPUS
from hf_edit.statistics.fetching import fetch, offered
from hf_edit.statistics.received import is_public
from hf_edit.statistics.store import Stored, base_folder, stored


INDEX, CARD = "statistics.json", "README.md"


def push_statistics(model: EditableModel, repo_id: str, *, message: str | None = None, **options: Any) -> HubCommit:
    """Publish what the cache holds for this base beside what the repository has.

    Statistics over a file stay here: its text is private, and nobody else would look for them. The tokens themselves
    are published only where the model wrote them.

    Args:
        options: tag, branch, private, token and collection, as for `hf_edit.hub.push.push`.

    Raises:
        StatisticsError: the cache holds nothing that could be published, or a damaged file.
        HubError: the Hub refused or failed.
    """
    entries = [entry for entry in stored(model) if is_public(entry.source)]
    if not entries:
        raise StatisticsError(
            "The cache holds no statistics of this model that could be published: those over a file stay private.",
            "Collect some first: hf-edit stats collect --model MODEL.",
        )
    base = base_folder(model)
    contents = {_name(base, entry.path): entry.path for entry in entries}
    for recipe in {entry.path.parent for entry in entries if entry.source == "self"}:
        if (recipe / CORPUS).is_file():
            contents[_name(base, recipe / CORPUS)] = recipe / CORPUS

    def plan(there: Published) -> Changes:
        index = _index(there.read(INDEX))
        index[base.name] = _described(model, entries, index.get(base.name))
        card = merged_card(_card(there.repo_id, index), there.read(CARD))
        return {**contents, INDEX: (json.dumps(index, sort_keys=True, indent=2) + "\n").encode(), CARD: card}

    return push(repo_id, plan, message=message or f"Statistics of {_base_name(model) or base.name}", **options)


def statistics_card(model: EditableModel, repo_id: str) -> bytes:
    """The card of what the cache holds for this base, as a push to a new repository of that name writes it."""
    entries = [entry for entry in stored(model) if is_public(entry.source)]
    return _card(repo_id, {base_folder(model).name: _described(model, entries, None)})


def pull_statistics(
    model: EditableModel, repo_id: str, *, revision: str | None = None, token: str | bool | None = None
) -> tuple[HubCommit, list[Path]]:
    """Fetch the statistics of this base into the cache: all that are sound, or none if one is not.

    What the cache has already is not replaced.

    Returns:
        The commit that they are of, and the new files.

    Raises:
        StatisticsError: the repository has none of this base, or a file that is no second moment of it.
        HubError: the repository could not be read.
    """
    base = base_folder(model)
    there = offered(repo_id, model, base.name, revision=revision, token=token)
    if not there.sizes:
        raise StatisticsError(
            f"{repo_id!r} has no statistics of this model in {dtype_name(model.model.dtype)} (weights {base.name}).",
            "Load the model in the dtype that they were collected in, or collect: hf-edit stats collect.",
        )
    return HubCommit(repo_id, there.commit), fetch(repo_id, there, model, base.parent, token=token)


def _name(base: Path, path: Path) -> str:
    return path.relative_to(base.parent).as_posix()


def _base_name(model: EditableModel) -> str | None:
    return repo_of(model.model.config._name_or_path)


def _index(data: bytes | None) -> dict[str, Any]:
    try:
        index = json.loads(data or b"{}")
        for base in index.values():
            for recipe in base["recipes"].values():
                if not isinstance(recipe["linears"], list) or not isinstance(recipe["tokens"], dict):
                    raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HubError(f"{INDEX} of the repository is damaged.", "Delete it there, then push again.") from error
    return index


def _described(model: EditableModel, entries: Iterable[Stored], before: dict[str, Any] | None) -> dict[str, Any]:
    """What the index says of a base, with what it said before."""
    recipes: dict[str, Any] = dict((before or {}).get("recipes", {}))
    for entry in entries:
        recipe = entry.path.parent.name
        linears = {entry.linear, *recipes.get(recipe, {}).get("linears", ())}
        recipes[recipe] = {"source": entry.source, "tokens": entry.tokens, "linears": sorted(linears)}
    return {
        "base": _base_name(model) or (before or {}).get("base"),
        "model_type": model.model.config.model_type,
        "dtype": dtype_name(model.model.dtype),
        "recipes": recipes,
    }


def _card(repo_id: str, index: dict[str, Any]) -> bytes:
    rows = []
    bases = sorted({base["base"] for base in index.values() if is_repo_id(base["base"] or "")})
    for fingerprint, base in sorted(index.items()):
        named = base["base"] or f"a {base['model_type']} model"
        for recipe in base["recipes"].values():
            tokens = ", ".join(f"{part} {count:,}" for part, count in sorted(recipe["tokens"].items()))
            cells = (f"{named}, {base['dtype']}", f"`{fingerprint}`", recipe["source"], tokens, len(recipe["linears"]))
            rows.append(f"| {' | '.join(map(str, cells))} |")
    template = Template((files("hf_edit.statistics") / "card.md").read_text(encoding="utf-8"))
    metadata = "".join(["\nbase_model:", *(f"\n- {base}" for base in bases)]) if bases else ""
    return template.substitute(repo=repo_id, rows="\n".join(rows), base_metadata=metadata).encode()
