"""`hf-edit verify`: whether a pack is whole, by whom it is signed and to which model it belongs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_edit.cli.options import Device, Dtype, Json, Pack, Revision
from hf_edit.cli.output import print_json
from hf_edit.cli.packs import check_revision, open_pack
from hf_edit.errors import PackError


def verify(
    pack: Pack,
    model: Annotated[
        str | None,
        typer.Option(help="The base model that the pack must have been made for: Hub id, directory, .gguf."),
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option(help="Public key (PEM) of the author, whose signature the pack must bear.")
    ] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Check a pack's files, and where they are given its base and its signature; exit code 2 if not.

    Checked are digests, shapes, that every number is finite, that nothing is in the folder, the repository or a file
    that the manifest does not declare, and that the rank suits the number of edits, which is told and not refused.
    """
    said: dict[str, Any] = {"pack": pack} | ({} if model is None else {"model": model})
    try:
        modules, signature, commit, note = _checked(pack, model, public_key, revision, device, dtype)
    except PackError as error:
        if as_json:
            print_json({**said, "verified": False, "error": error.message, "fix": error.remedy})
        raise
    if as_json:
        found = {"modules": modules, "signature": signature, "commit": commit, "note": note}
        print_json({**said, "verified": True, **found})
        return
    made_for = f" and was made for {model}" if model is not None else ""
    at = f" at commit {commit}" if commit else ""
    typer.echo(f"verified: {pack}{at} is whole{made_for} ({len(modules)} module(s), {signature})")
    if note:
        typer.echo(f"note: {note}", err=True)


def _checked(
    pack: str, model: str | None, public_key: Path | None, revision: str | None, device: str | None, dtype: str
) -> tuple[list[str], str, str | None, str | None]:
    """The pack's modules, the state of its signature, the Hub's commit that it is of, and what is odd about it."""
    from hf_edit.models.loading import load_model
    from hf_edit.packs.listing import check_listing
    from hf_edit.packs.signing import read_signature, verify_signature
    from hf_edit.packs.verify import over_budget

    check_revision(revision, model)
    opened, place = open_pack(pack)
    check_listing(pack, place.entries(), opened.manifest.files)
    folder = place.opened()
    signature = "unsigned" if read_signature(folder) is None else "signed by a key that was not asked for"
    if public_key is not None:
        verify_signature(folder, public_key)
        signature = f"signed by {public_key.name}"
    if model is not None:
        base, _ = load_model(model, dtype=dtype, device=device, revision=revision)
        opened.verify(base)
    commit = None if opened.origin is None else opened.origin.commit
    return sorted(opened.deltas), signature, commit, over_budget(opened.manifest, opened.edits)
