"""`hf-edit merge`: a base and packs in, one whole model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_edit.cli.options import Device, Dtype, Json, Model, Revision, replaceable
from hf_edit.cli.output import print_facts, print_json, print_table, readable_size
from hf_edit.cli.packs import pack_at
from hf_edit.cli.progress import Bars
from hf_edit.cli.whole_model import check_empty, check_savable, save_model
from hf_edit.errors import ConfigError


def merge(
    packs: Annotated[list[str], typer.Argument(help="Packs: directories or Hub ids.", show_default=False)],
    model: Model,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of the model to write; must be new.", show_default=False, callback=replaceable),
    ] = None,
    rounding: Annotated[
        str,
        typer.Option(help="nearest, or compensated, which keeps nearly all of a small change in a coarse dtype."),
    ] = "nearest",
    report: Annotated[bool, typer.Option("--report", help="Only say how much of the packs would survive.")] = False,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Merge packs into the weights of their base and save it as a model of its own.

    The model brings along what `hf-edit unmerge` needs to give the base back bit for bit.
    """
    if out is None and not report:
        raise ConfigError("It is not said where to write the model.", "Add --out DIR, or --report to write none.")
    if out is not None:
        check_empty(out)

    from hf_edit.compose.merge import merge as merged
    from hf_edit.compose.merge_card import merged_card
    from hf_edit.compose.merge_report import merge_report
    from hf_edit.compose.merged import receipt_beside, remembered
    from hf_edit.models.loading import load_model

    given = [pack_at(pack) for pack in packs]
    base, tokenizer = load_model(model, dtype=dtype, device=device, revision=revision)
    if not report:
        check_savable(base)
    # a base into which packs were merged before is known by the receipt that lies beside it
    onto = None if Path(model).is_file() else receipt_beside(base, model, revision)
    how: Any = {"rounding": rounding, "onto": onto}
    foreseen = merge_report(base, given, **how).to_json()
    document = {"base": model, "packs": packs, "dtype": str(base.dtype).removeprefix("torch."), **foreseen}
    if out is not None and not report:
        with Bars() as progress:
            receipt = merged(base, given, progress=progress, **how)
        card = merged_card(remembered(base), given[0].manifest.base.id)
        size = save_model(base, tokenizer, out, card)
        document |= {"model": str(out), "measured": dict(receipt.merges[-1].loss), "bytes": size}
    if as_json:
        print_json(document)
    else:
        _print(document)


def _print(document: dict[str, Any]) -> None:
    """The figures per module, predicted and, where it was merged, measured."""
    kinds = [kind for kind in ("predicted", "measured") if kind in document]
    columns = ["module", "|dW| / |W|", *(f"{what}, {kind}" for kind in kinds for what in ("survives", "error"))]
    rows = []
    for name in [*document["predicted"]["modules"], "all"]:
        losses = [document[kind]["modules"].get(name, document[kind]["all"]) for kind in kinds]
        cells = [cell for loss in losses for cell in (f"{loss['survival']:.1%}", f"{loss['error']:.2g}")]
        rows.append((name, f"{losses[0]['size']:.2g}", *cells))
    print_table(f"Rounded to {document['dtype']}, {document['rounding']}", columns, rows)
    if "model" not in document and document["advice"]:
        typer.echo(f"note: {document['advice']}", err=True)  # merging says so itself
    if "model" in document:
        print_facts(
            (
                ("model", document["model"]),
                ("size", readable_size(document["bytes"])),
                ("undo", f"hf-edit unmerge {document['model']} --out DIR"),
            )
        )
