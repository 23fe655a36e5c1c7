"""`hf-edit push`: the folder of a pack or of a hypernetwork to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_edit.cli.options import Collection, Json
from hf_edit.cli.output import print_facts, print_json
from hf_edit.errors import ConfigError


def push(
    folder: Annotated[Path, typer.Argument(help="The folder of a pack or of a hypernetwork.", show_default=False)],
    repository: Annotated[str, typer.Argument(help="A repository on the Hub: owner/name.", show_default=False)],
    tag: Annotated[str | None, typer.Option(help="A name for this version, which must be new.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Of a new repository; refuse a public one.")] = False,
    subfolder: Annotated[str | None, typer.Option(help="Folder in the repository.")] = None,
    branch: Annotated[str | None, typer.Option(help="Branch of the repository. [default: main]")] = None,
    collection: Collection = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Id of the base on the Hub, where the pack was computed on a local one.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="Layout of the adapter, such as portable or bf16. [default: as it is]")
    ] = None,
    values: Annotated[bool, typer.Option(help="Publish values.safetensors too.")] = True,
    as_json: Json = False,
) -> None:
    """Publish a pack or a hypernetwork on the Hub in one commit; the token is the one of `hf auth login`, or HF_TOKEN.

    The folder's files are published as they are, signatures too, unless --layout, --no-values or --base-model asks for
    others. In the card on the Hub, what its owner wrote around the generated part stays.
    """
    from hf_edit.hypernets import sharing as hypernets
    from hf_edit.packs.pack import EditPack
    from hf_edit.packs.sharing import publish_folder

    if hypernets.is_hypernet(folder):
        if subfolder is not None or base_model is not None or layout is not None or not values:
            raise ConfigError(
                "A hypernetwork has no subfolder, layout, values or other base.", "Leave these options out."
            )
        done = hypernets.publish_folder(
            folder,
            repository,
            tag=tag,
            private=private or None,
            branch=branch,
            collection=collection,
            message=message,
        )
    elif base_model is None and layout is None and values:
        done = publish_folder(
            folder,
            repository,
            tag=tag,
            private=private or None,
            subfolder=subfolder,
            branch=branch,
            collection=collection,
            message=message,
        )
    else:
        pack = EditPack.from_pretrained(folder)
        done = pack.push_to_hub(
            repository,
            tag=tag,
            private=private or None,
            subfolder=subfolder,
            revision=branch,
            collection=collection,
            message=message,
            base_model=base_model,
            layout=layout or pack.manifest.layout,
            values=values,
        )
    if as_json:
        document = {"repository": done.repo_id, "subfolder": done.subfolder, "commit": done.commit, "tag": tag}
        print_json(document | {"url": done.url})
    else:
        print_facts((("published", done.url), ("commit", done.commit), *([("tag", tag)] if tag else [])))
