"""`hf-edit diff`: what changed from one pack to another."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from hf_edit.cli.options import Json
from hf_edit.cli.output import last_text, print_facts, print_json, print_table, shortened
from hf_edit.cli.packs import pack_at


if TYPE_CHECKING:
    from hf_edit.compose.diff import PackDiff


def diff(
    first: Annotated[str, typer.Argument(help="The earlier pack: directory or Hub id.", show_default=False)],
    second: Annotated[str, typer.Argument(help="The later pack: directory or Hub id.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Show which edits a pack adds, removes and changes, and how far its update is from the other's.

    No model is loaded. The exit code is 0 whether they differ or not.
    """
    from hf_edit.compose.diff import diff as compared

    found = compared(pack_at(first), pack_at(second))
    if as_json:
        print_json({"first": first, "second": second, **found.to_json()})
    else:
        _print(found)


def _print(found: PackDiff) -> None:
    rows = [
        (what, edit.id, shortened(last_text(edit.prompt)), shortened(edit.target))
        for what, edits in (("added", found.added), ("removed", found.removed))
        for edit in edits
    ]
    for change in found.changed:
        what = f"changed: {', '.join(change.fields)}"
        for label, edit in ((what, change.before), ("→", change.after)):
            rows.append((label, edit.id, shortened(last_text(edit.prompt)), shortened(edit.target)))
    if rows:
        print_table("Edits", ("", "id", "prompt", "target"), rows, lines=True)
    if found.settings:
        values = ((name, json.dumps(a), json.dumps(b)) for name, (a, b) in found.settings.items())
        print_table("Settings", ("", "first", "second"), values)
    moved = (
        (
            name,
            f"{change.before:.4g}",
            f"{change.after:.4g}",
            "other shape" if change.relative is None else f"{change.relative:.2%}",
        )
        for name, change in found.modules.items()
    )
    print_table("Updates", ("module", "norm of first", "norm of second", "difference"), moved)
    print_facts((("edits unchanged", found.unchanged), ("packs", "the same" if found.same else "differ")))
