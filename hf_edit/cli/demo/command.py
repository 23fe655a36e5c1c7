"""`hf-edit demo`: three edits of the embedded model, opened by a process that knows only transformers and peft."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from hf_edit.cli.apply import compute_pack
from hf_edit.cli.options import Json
from hf_edit.cli.output import print_json
from hf_edit.edits import EditSet


def demo(
    workdir: Annotated[Path, typer.Option(help="Where the base model and the pack go.")] = Path("build/demo"),
    as_json: Json = False,
) -> None:
    """Teach SmolLM2-135M three answers, then open the pack with plain transformers and peft."""
    from hf_edit.models.loading import export_embedded

    files = resources.files("hf_edit.cli.demo")
    with resources.as_file(files / "edits.jsonl") as edits_file, resources.as_file(files / "open_pack.py") as script:
        _headline(f"1  The base: SmolLM2-135M-Instruct, saved at {workdir / 'base'}", as_json)
        base = export_embedded(workdir / "base")
        _headline(f"2  The edits, computed into {workdir / 'pack'}", as_json)
        applied = compute_pack(str(base), EditSet.from_jsonl(edits_file), workdir / "pack")
        if not as_json:
            applied.print()
        _headline("3  The pack, opened by another process with transformers and peft only", as_json)
        command = [sys.executable, str(script), str(base), str(workdir / "pack")]
        opened = subprocess.run(command, check=False, stdout=subprocess.PIPE if as_json else None, text=True)
    if as_json:
        holds = {"holds": opened.returncode == 0, "said": opened.stdout}
        print_json({"base": str(base), **applied.to_json(), "opened": holds})
    if opened.returncode:
        raise typer.Exit(1)


def _headline(text: str, as_json: bool) -> None:
    """What comes next; beside JSON on stderr."""
    typer.secho(f"\n{text}\n", bold=True, err=as_json)
    sys.stdout.flush()
