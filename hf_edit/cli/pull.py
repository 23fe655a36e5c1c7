"""`hf-edit pull`: a pack or a hypernetwork of the Hub as a folder."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hf_edit.cli.options import Json, Out
from hf_edit.cli.output import print_facts, print_json
from hf_edit.cli.packs import parted
from hf_edit.errors import ConfigError


def pull(
    repository: Annotated[str, typer.Argument(help="On the Hub: owner/name[/folder][@revision].", show_default=False)],
    out: Out,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit. [default: main]")] = None,
    subfolder: Annotated[str | None, typer.Option(help="Folder in the repository.")] = None,
    as_json: Json = False,
) -> None:
    """Check a pack of the Hub, or a hypernetwork, and copy it to a folder.

    Prints the commit, by which the same can be had again.
    """
    from hf_edit.hub.fetch import check_no_revision
    from hf_edit.hypernets import sharing as hypernets
    from hf_edit.packs import sharing

    name, folder, version = parted(repository)
    subfolder = _one_of("--subfolder", subfolder, folder)
    revision = _one_of("--revision", revision, version)
    check_no_revision(name, revision)
    document: dict[str, Any] = {"repository": repository, "subfolder": subfolder}
    if subfolder is None and hypernets.is_published(name, revision=revision):
        manifest, origin = hypernets.pull(name, out, revision=revision)
        kind, base, holds = "hypernet", manifest.base.id, ("method", manifest.method)
        document |= {"method": manifest.method}
    else:
        pack, origin = sharing.pull(name, out, revision=revision, subfolder=subfolder)
        kind, base, holds = "pack", pack.manifest.base.id, ("edits", str(len(pack.edits)))
        document |= {"edits": [edit.id for edit in pack.edits]}
    commit = origin.commit if origin else None
    if as_json:
        print_json({kind: str(out), "commit": commit, "base": base} | document)
    else:
        print_facts(((kind, out), ("from", repository), ("commit", commit or "none: a folder"), holds))


def _one_of(option: str, given: str | None, named: str | None) -> str | None:
    """What an option says, or the name of the repository; ConfigError where they say two things."""
    if None not in (given, named) and given != named:
        raise ConfigError(f"{option} is {given!r}, and the repository is named with {named!r}.", "Give one of them.")
    return given or named
