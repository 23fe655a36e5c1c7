"""`hf-edit apply`: edits in, pack out, with the answers before and after."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_edit.cli.inputs import READERS, read_edits, read_settings
from hf_edit.cli.methods import method_entry
from hf_edit.cli.options import (
    Answers,
    Assignments,
    Config,
    Device,
    Dtype,
    Earlier,
    Json,
    Memory,
    Model,
    Out,
    Revision,
    Seed,
)
from hf_edit.cli.output import folder_size, last_text, print_facts, print_json, print_table, readable_size, shortened
from hf_edit.cli.packs import pack_at
from hf_edit.cli.progress import Bars
from hf_edit.errors import ConfigError
from hf_edit.evaluation.scores import exact
from hf_edit.processes import is_first, placed


if TYPE_CHECKING:
    from hf_edit.edits import Edit, EditSet
    from hf_edit.packs.pack import EditPack


def apply(
    model: Model,
    edits: Annotated[Path, typer.Option(help="File of edits.", show_default=False)],
    out: Out,
    method: Annotated[
        str | None,
        typer.Option(help="Editing method; `hf-edit methods` lists them. [default: anyedit, backend direct]"),
    ] = None,
    edits_format: Annotated[str, typer.Option(help=f"Layout of the file: {', '.join(READERS)}.")] = "jsonl",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N edits.")] = None,
    backend: Annotated[str | None, typer.Option(help="How the method turns targets into weights.")] = None,
    hypernet: Annotated[
        str | None, typer.Option(help="Trained hypernetwork for the method: directory or Hub id.")
    ] = None,
    config: Config = None,
    set_: Assignments = None,
    format: Annotated[
        str | None, typer.Option(help="Prompt format: chat, plain or qa. [default: chat if the model has a template]")
    ] = None,
    seed: Seed = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    earlier: Earlier = None,
    memory: Memory = None,
    answers: Answers = True,
    as_json: Json = False,
) -> None:
    """Compute edits of a model and save them as a pack.

    A run that was killed goes on where it stopped when the same command is given again. Several processes, started by
    `accelerate launch` or `torchrun`, share the edits.
    """
    check_target(out)
    edit_set = read_edits(edits, edits_format, limit)
    given = {"backend": backend, "hypernet": hypernet, "format": format, "seed": seed}
    result = compute_pack(
        model,
        edit_set,
        out,
        method=method,
        settings=read_settings(config, set_ or (), given),
        revision=revision,
        device=device,
        dtype=dtype,
        with_answers=answers,
        earlier=earlier or (),
        memory=memory,
    )
    result.report(as_json)


@dataclass(frozen=True)
class Applied:
    """A saved pack and what the model answers without and with it; None if not asked.

    Args:
        before, after: in the order of the edits, and then of those taken back.
        reverted: edits that were taken back.
    """

    pack: EditPack
    path: Path
    seconds: float
    before: list[str] | None
    after: list[str] | None
    reverted: Sequence[Edit] = ()

    @property
    def rank(self) -> int:
        return max((delta.rank for delta in self.pack.deltas.values()), default=0)

    def to_json(self) -> dict[str, Any]:
        edits: list[dict[str, Any]] = [{"id": e.id, "target": e.target} for e in self.pack.edits]
        reverted: list[dict[str, Any]] = [{"id": e.id} for e in self.reverted]
        if self.before is not None and self.after is not None:
            for record, before, after in zip([*edits, *reverted], self.before, self.after, strict=True):
                record |= {"before": before, "after": after}
            for record in edits:
                record["exact"] = exact(record["after"], record["target"])
            for record in reverted:
                record["as_before"] = record["before"] == record["after"]
        return {
            "pack": str(self.path),
            "rank": self.rank,
            "modules": sorted(self.pack.deltas),
            "bytes": folder_size(self.path),
            "seconds": round(self.seconds, 2),
            **({} if self.pack.peak_memory is None else {"peak_memory": self.pack.peak_memory}),
            "edits": edits,
            **({"reverted": reverted} if reverted else {}),
        }

    def report(self, as_json: bool) -> None:
        """Print it for programs or for people."""
        if as_json:
            print_json(self.to_json())
        else:
            self.print()

    def print(self) -> None:
        if self.before is not None and self.after is not None:
            asked = [*self.pack.edits, *self.reverted]
            wanted = [edit.target for edit in self.pack.edits] + self.before[len(self.pack.edits) :]
            rows = [
                (
                    shortened(last_text(edit.prompt)),
                    shortened(before),
                    shortened(after),
                    "yes" if exact(after, target) else "no",
                )
                for edit, target, before, after in zip(asked, wanted, self.before, self.after, strict=True)
            ]
            print_table("Answers", ("prompt", "before", "after", "exact"), rows, lines=True)
        print_facts(
            (
                ("pack", self.path),
                ("edits", len(self.pack.edits)),
                *([("taken back", len(self.reverted))] if self.reverted else []),
                ("rank", f"{self.rank} in {len(self.pack.deltas)} module(s)"),
                ("size", readable_size(folder_size(self.path))),
                ("computed in", f"{self.seconds:.1f} s"),
                *(
                    []
                    if self.pack.peak_memory is None
                    else [("memory", f"{readable_size(self.pack.peak_memory)} beside the model")]
                ),
            )
        )


def check_target(out: Path) -> None:
    """Find out before minutes of computing, not after, that the pack cannot be saved there."""
    from hf_edit.files.atomic import check_replaceable
    from hf_edit.packs.contents import MANIFEST, is_pack_file

    check_replaceable(out, MANIFEST, is_pack_file)


def check_file(path: Path) -> None:
    """Find out before anything is computed that there is no folder for a file to write."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be written.", "Give a file in an existing folder.")


def compute_pack(
    base: str,
    edits: EditSet,
    out: Path,
    *,
    method: str | None = None,
    settings: dict[str, Any] | None = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
    with_answers: bool = True,
    earlier: Sequence[str] = (),
    memory: str | None = None,
) -> Applied:
    """Compute the pack of these edits with a method, as `pack_of` does.

    Args:
        earlier: packs that the model has attached while it is edited and asked; what they teach is preserved.
        memory: the budget.
        method: none: what `edit` does without settings.
    """
    from hf_edit.api import edit
    from hf_edit.models.memory import parse_bytes

    budget = None if memory is None else parse_bytes(memory)
    if method is None:
        method, settings = "anyedit", {"backend": "direct"} | (settings or {})
    config: Any = method_entry(method).config_class.from_mapping(settings or {})
    before = [pack_at(one) for one in earlier]

    def compute(model: Any, tokenizer: Any, **how: Any) -> EditPack:
        attach_earlier(model, before)
        return edit(model, tokenizer, edits, config, earlier=before, memory_budget=budget, **how)

    return pack_of(
        base,
        out,
        compute,
        format=config.format,
        revision=revision,
        device=device,
        dtype=dtype,
        with_answers=with_answers,
    )


def attach_earlier(model: Any, packs: Sequence[EditPack]) -> None:
    """Attach packs that stay while others are computed."""
    from hf_edit.compose.attach import attach

    for number, pack in enumerate(packs):
        attach(model, pack, f"earlier_{number}")


def pack_of(
    base: str,
    out: Path,
    compute: Callable[..., EditPack],
    *,
    format: str | None,
    revision: str | None,
    device: str | None,
    dtype: str,
    with_answers: bool,
    reverted: Sequence[Edit] = (),
) -> Applied:
    """Load the base, compute the pack, save it at `out` and ask the model before and after.

    What a killed run has finished lies in `.<name of out>.resume` beside `out` until the pack is saved. Of several
    processes that compute together the first saves and asks.

    Args:
        compute: called with model, tokenizer, progress and resume_dir.
        reverted: edits taken back, which are asked too.

    Raises:
        typer.Exit: this is another process than the first; its work is done.
    """
    from hf_edit.compose.attach import attach
    from hf_edit.evaluation.answers import edit_answers
    from hf_edit.models.loading import load_model
    from hf_edit.prompting import PromptFormat

    model, tokenizer = load_model(base, dtype=dtype, device=placed(device), revision=revision)
    prompts = PromptFormat.of(format, tokenizer)

    resume = out.parent / f".{out.name}.resume"
    started = time.perf_counter()
    with Bars() as progress:
        pack = compute(model, tokenizer, progress=progress, resume_dir=resume)
    seconds = time.perf_counter() - started
    if not is_first():
        raise typer.Exit
    pack.save_pretrained(out)
    shutil.rmtree(resume, ignore_errors=True)
    if not with_answers:
        return Applied(pack, out, seconds, None, None, reverted)
    asked = [*pack.edits, *reverted]
    before = edit_answers(model, prompts, asked, drafts=[""] * len(asked))
    attach(model, pack, "new")
    expected = [*(edit.target for edit in pack.edits), *before[len(pack.edits) :]]
    after = edit_answers(model, prompts, asked, drafts=expected)
    return Applied(pack, out, seconds, before, after, reverted)
