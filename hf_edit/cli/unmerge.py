"""`hf-edit unmerge`: the base of a merged model, as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_edit.cli.options import Device, Json, replaceable
from hf_edit.cli.output import print_facts, print_json, readable_size
from hf_edit.cli.progress import Bars
from hf_edit.cli.whole_model import check_empty, check_savable, save_model


def unmerge(
    model: Annotated[
        str, typer.Argument(help="A model that packs were merged into: directory or Hub id.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option(help="Directory of the base to write; must be new.", show_default=False, callback=replaceable),
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the Hub.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Undo all merges in a model: every weight is again, bit for bit, what it was before the first."""
    check_empty(out)

    from hf_edit.compose.merge import unmerge as unmerged
    from hf_edit.compose.receipt import MergeReceipt
    from hf_edit.models.loading import load_model

    receipt = MergeReceipt.load(model, revision)
    merged, tokenizer = load_model(model, device=device, revision=revision)
    check_savable(merged)
    with Bars() as progress:
        unmerged(merged, receipt, progress=progress)
    size = save_model(merged, tokenizer, out)
    if as_json:
        print_json({"merged": model, "model": str(out), "weights": sorted(receipt.weights), "bytes": size})
    else:
        print_facts(
            (
                ("model", out),
                ("restored", f"{len(receipt.weights)} weight(s), checked by sha256"),
                ("size", readable_size(size)),
            )
        )
