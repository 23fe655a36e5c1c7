"""`hf-edit demo`: three edits of the embedded model, opened by a process that knows only transformers and peft."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from hf_edit.cli.apply import compute_pack
from hf_edit.edits import EditSet


def demo(
    workdir: Annotated[Path, typer.Option(help="Where the base model and the pack go.")] = Path("build/demo"),
) -> None:
    """Teach SmolLM2-135M three answers, then open the pack with plain transformers and peft."""
    from hf_edit.models.loading import export_embedded

    files = resources.files("hf_edit.cli.demo")
    with resources.as_file(files / "edits.jsonl") as edits_file, resources.as_file(files / "open_pack.py") as script:
        _headline(f"1  The base: SmolLM2-135M-Instruct, saved at {workdir / 'base'}")
        base = export_embedded(workdir / "base")
        _headline(f"2  The edits, computed into {workdir / 'pack'}")
        compute_pack(str(base), EditSet.from_jsonl(edits_file), workdir / "pack").print()
        _headline("3  The pack, opened by another process with transformers and peft only")
        opened = subprocess.run([sys.executable, str(script), str(base), str(workdir / "pack")], check=False)
    if opened.returncode:
        raise typer.Exit(1)


def _headline(text: str) -> None:
    typer.secho(f"\n{text}\n", bold=True)
    sys.stdout.flush()
