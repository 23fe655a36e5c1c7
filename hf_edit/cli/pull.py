"""`hf-edit pull`: a pack of the Hub as a folder."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_edit.cli.options import Json, Out
from hf_edit.cli.output import print_facts, print_json


def pull(
    repository: Annotated[str, typer.Argument(help="A repository on the Hub: owner/name.", show_default=False)],
    out: Out,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit. [default: main]")] = None,
    subfolder: Annotated[str | None, typer.Option(help="Folder in the repository.")] = None,
    as_json: Json = False,
) -> None:
    """Check a pack of the Hub and copy it to a folder; prints the commit, by which the same pack can be had again."""
    from hf_edit.packs import sharing

    pack, origin = sharing.pull(repository, out, revision=revision, subfolder=subfolder)
    commit = origin.commit if origin else None
    if as_json:
        document = {"pack": str(out), "repository": repository, "subfolder": subfolder, "commit": commit}
        print_json(document | {"edits": [edit.id for edit in pack.edits], "base": pack.manifest.base.id})
    else:
        facts = (
            ("pack", out),
            ("from", repository),
            ("commit", commit or "none: a folder"),
            ("edits", len(pack.edits)),
        )
        print_facts(facts)
