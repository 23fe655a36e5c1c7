"""`hf-edit sign`: a detached signature beside a pack's files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_edit.cli.options import Json
from hf_edit.cli.output import print_json


def sign(
    pack: Annotated[Path, typer.Argument(help="Folder of the pack.", show_default=False)],
    private_key: Annotated[
        Path, typer.Option(help="Elliptic-curve private key (PEM; P-256, P-384 or P-521).", show_default=False)
    ],
    password: Annotated[
        str | None,
        typer.Option(envvar="HF_EDIT_KEY_PASSWORD", help="Of the key; better given in the environment variable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Sign a pack, so that others can check with your public key that it is yours and unaltered.

    Nothing is sent anywhere. The card, README.md, is not part of what is signed. `hf-edit verify --public-key` checks
    the signature. A key pair is made by `openssl ecparam -genkey -name prime256v1 -noout -out key.pem` and
    `openssl ec -in key.pem -pubout -out key.pub`.
    """
    from hf_edit.packs.signing import sign as signed

    signature = signed(pack, private_key, password=password)
    if as_json:
        print_json({"pack": str(pack), "signature": str(signature)})
    else:
        typer.echo(f"signed: {signature}")
