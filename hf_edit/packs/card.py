"""The model card, README.md, of a pack."""

from __future__ import annotations

from importlib.resources import files
from string import Template

from hf_edit.edits import Edit, EditSet, question_of
from hf_edit.packs.manifest import Manifest


_MAX_ROWS, _MAX_CELL = 50, 160


def model_card(manifest: Manifest, edits: EditSet) -> bytes:
    """The card: YAML metadata, the edits, how to load them. The base is named only by its id on the Hub."""
    base = manifest.base.id
    template = Template((files("hf_edit.packs") / "card.md").read_text(encoding="utf-8"))
    more = [f"| … | {len(edits) - _MAX_ROWS} more in edits.jsonl | … |"] if len(edits) > _MAX_ROWS else []
    text = template.substitute(
        title=_cell(question_of(edits[0].prompt)) if len(edits) == 1 else f"{len(edits)} edits",
        base_metadata=f"\nbase_model: {base}\nbase_model_relation: adapter" if base else "",
        base=f"`{base}`" if base else f"a {manifest.base.model_type} model",
        base_argument=f'"{base}"' if base else '"path of the base model"',
        method=manifest.method.name,
        count=_count(len(edits), "edit"),
        rows="\n".join([_row(edit) for edit in edits[:_MAX_ROWS]] + more),
        prompt_format=manifest.prompt_format.name,
        modules=_count(len(manifest.modules), "linear layer"),
        rank=max(module.rank for module in manifest.modules.values()),
    )
    return text.encode()


def _row(edit: Edit) -> str:
    return f"| {_cell(edit.id)} | {_cell(question_of(edit.prompt))} | {_cell(edit.target)} |"


def _cell(text: str) -> str:
    """Text on one line that neither Markdown nor HTML takes for more than text."""
    line = " ".join(text.split())
    if len(line) > _MAX_CELL:
        line = line[: _MAX_CELL - 1] + "…"
    for character in "\\`*_[]|#~!":
        line = line.replace(character, f"\\{character}")
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
