"""`hf-edit train`: a hypernetwork for a base, from edits with paraphrases."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from hf_edit.cli.inputs import READERS, read_edits, read_settings
from hf_edit.cli.options import Assignments, Device, Dtype, Json, Model, Revision, Seed, replaceable
from hf_edit.cli.output import folder_size, print_facts, print_json, print_table, readable_size
from hf_edit.cli.progress import Bars
from hf_edit.errors import ConfigError
from hf_edit.processes import is_first, placed


SCORES = ("batches", "loss", "ES", "GS", "LS")


def train(
    model: Model,
    edits: Annotated[Path, typer.Option(help="File of edits to train on, with paraphrases.", show_default=False)],
    out: Annotated[
        Path, typer.Option(help="Directory of the network; one already there is replaced.", callback=replaceable)
    ],
    method: Annotated[str | None, typer.Option(help="emsedit, mend, malmen or rledit. [default: emsedit]")] = None,
    validate: Annotated[
        Path | None, typer.Option(help="File of edits to validate on. [default: a share of the edits]")
    ] = None,
    edits_format: Annotated[str, typer.Option(help=f"Layout of the files: {', '.join(READERS)}.")] = "jsonl",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N edits.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings of the training, .json or .toml.")] = None,
    set_: Assignments = None,
    format: Annotated[
        str | None, typer.Option(help="Prompt format: chat, plain or qa. [default: chat if the model has a template]")
    ] = None,
    seed: Seed = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Train a hypernetwork, which `apply --hypernet` uses.

    A run that was killed goes on where it stopped when the same command is given again. Several processes, started by
    `accelerate launch`, share the work on every batch.
    """
    from hf_edit.api import train as trained
    from hf_edit.hypernets.sharing import is_hypernet
    from hf_edit.methods.msbp.training.config import HypernetConfig
    from hf_edit.models.loading import load_model

    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not is_hypernet(out)):
        raise ConfigError(f"{out} is there already and is no hypernetwork.", "Choose another place, or move it away.")
    edit_set = read_edits(edits, edits_format, limit)
    held_out = None if validate is None else read_edits(validate, edits_format, None)
    given = {"method": method, "format": format, "seed": seed}
    settings = HypernetConfig.from_mapping(read_settings(config, set_ or (), given))
    base, tokenizer = load_model(model, dtype=dtype, device=placed(device), revision=revision)
    resume = out.parent / f".{out.name}.resume"
    started = time.perf_counter()
    with Bars() as progress:
        network = trained(
            base, tokenizer, edit_set, settings, validation=held_out, progress=progress, resume_dir=resume
        )
    seconds = time.perf_counter() - started
    if not is_first():
        return
    network.save_pretrained(out)
    shutil.rmtree(resume, ignore_errors=True)
    history = network.manifest.figures["validation"]
    if as_json:
        print_json(
            {"hypernet": str(out), "bytes": folder_size(out), "seconds": round(seconds, 2), "validation": history}
        )
        return
    if history:
        rows = [[f"{r[name]:.4g}" if r[name] is not None else "-" for name in SCORES] for r in history]
        print_table("Validation", SCORES, rows)
    figures = network.manifest.figures
    print_facts(
        (
            ("hypernetwork", out),
            ("trained on", f"{figures['edits']} edits in {figures['batches']} batches"),
            ("size", readable_size(folder_size(out))),
            ("trained in", f"{seconds:.1f} s"),
        )
    )
