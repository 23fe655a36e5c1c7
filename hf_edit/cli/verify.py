"""`hf-edit verify`: whether a pack is whole and belongs to a model."""

from __future__ import annotations

import typer

from hf_edit.cli.options import Device, Dtype, Json, Model, Pack, Revision
from hf_edit.cli.output import print_json
from hf_edit.errors import PackError


def verify(
    pack: Pack,
    model: Model,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Check a pack's files and that it was made for this very base; exit code 2 if not."""
    from hf_edit.models.loading import load_model
    from hf_edit.packs.pack import EditPack

    try:
        opened = EditPack.from_pretrained(pack)
        base, _ = load_model(model, dtype=dtype, device=device, revision=revision)
        opened.verify(base)
    except PackError as error:
        if as_json:
            print_json({"pack": pack, "model": model, "verified": False, "error": error.message, "fix": error.remedy})
        raise
    if as_json:
        print_json({"pack": pack, "model": model, "verified": True, "modules": sorted(opened.deltas)})
    else:
        typer.echo(f"verified: {pack} is whole and was made for {model} ({len(opened.deltas)} module(s))")
