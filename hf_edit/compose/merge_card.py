"""The model card, README.md, of a model with packs merged into it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from string import Template

from hf_edit.compose.receipt import MergeReceipt
from hf_edit.edits import Edit
from hf_edit.packs.card import counted, rows_of


def merged_card(receipts: Sequence[MergeReceipt], base: str | None) -> str:
    """The card: YAML metadata, the edits of all that is merged, how to undo it.

    Args:
        receipts: of all that is merged; the last one as `merge` returned it.
        base: the base's id on the Hub.
    """
    last = receipts[-1]
    packs = [pack for receipt in receipts for merge in receipt.merges for pack in merge.packs]
    edits = [Edit.from_json(edit) for pack in packs for edit in pack.edits]
    template = Template((files("hf_edit.compose") / "merged.md").read_text(encoding="utf-8"))
    return template.substitute(
        title=f"{base.rpartition('/')[2] if base else 'Model'} with {counted(len(edits), 'edit')}",
        base_metadata=f"\nbase_model: {base}\nbase_model_relation: finetune" if base else "",
        base=f"`{base}`" if base else "A language model",
        count=counted(len(edits), "edit"),
        packs=counted(len(packs), "pack"),
        rows=rows_of(edits, "`merge_receipt/receipt.json`"),
        dtype=next(iter(last.weights.values())).dtype,
        rounding=last.merges[-1].rounding,
        survival=f"{last.merges[-1].loss['all']['survival']:.1%}",
        error=f"{last.merges[-1].loss['all']['error']:.2g}",
    )
