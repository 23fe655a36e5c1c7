"""The card, README.md, of a hypernetwork."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

from hf_edit.hypernets.manifest import Manifest


def hypernet_card(manifest: Manifest) -> bytes:
    """The card: YAML metadata, what it serves, how to use it, what its training measured."""
    base = manifest.base
    template = Template((files("hf_edit.hypernets") / "card.md").read_text(encoding="utf-8"))
    layers = [linear.layer for linear in manifest.linears]
    return template.substitute(
        base_metadata=f"\nbase_model: {base.id}" if base.id else "",
        base=f"`{base.id}`" if base.id else f"a {base.model_type} model",
        base_argument=base.id or "MODEL",
        dtype=base.dtype,
        method=manifest.method,
        format=manifest.prompt_format.name,
        linears=len(manifest.linears),
        layers=_ranged(layers),
        steps=manifest.steps,
        ranks=", ".join(map(str, manifest.ranks)),
        blocks=manifest.blocks,
        edits=_shown(manifest.figures.get("edits")),
        batches=_shown(manifest.figures.get("batches")),
        rows="\n".join(_rows(manifest)),
    ).encode()


def _rows(manifest: Manifest) -> list[str]:
    history = manifest.figures.get("validation")
    figures = ("batches", "loss", "ES", "GS", "LS")
    records = [record for record in history if isinstance(record, dict)] if isinstance(history, list) else []
    return [f"| {' | '.join(_shown(record.get(figure)) for figure in figures)} |" for record in records]


def _ranged(layers: Sequence[int]) -> str:
    contiguous = len(layers) > 1 and list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]} to {layers[-1]}" if contiguous else ", ".join(map(str, layers))


def _shown(figure: Any) -> str:
    if isinstance(figure, float):
        return f"{figure:.4g}"
    return str(figure) if isinstance(figure, int) else "-"
