"""`hf-edit conflicts`: where packs contradict each other or stand in each other's way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_edit.cli.apply import check_file
from hf_edit.cli.options import Device, Dtype, Json, Revision
from hf_edit.cli.output import print_facts, print_json, print_table
from hf_edit.cli.packs import pack_at
from hf_edit.cli.progress import Bars


if TYPE_CHECKING:
    from hf_edit.compose.conflicts.report import ConflictReport, Interference

MAX_ROWS = 50
"""Findings shown on a terminal; `--json` has all."""


def conflicts(
    packs: Annotated[list[str], typer.Argument(help="Two or more packs: directories or Hub ids.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(help="The packs' base: also compare keys and measure which edits are lost beside other packs."),
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw heat maps into this PNG.")] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Find questions that packs answer differently, inputs that both change, and, with --model, edits that get lost.

    The exit code is 0 whether there are conflicts or not; `conflicts` in the JSON counts them.
    """
    if picture is not None:
        from hf_edit.methods.locating.picture import plotting

        plotting()  # find out before minutes of computing, not after
        check_file(picture)
    from hf_edit.compose.adapters import name_of
    from hf_edit.evaluation.conflicts import conflicts as compared
    from hf_edit.models.loading import load_model

    opened = [pack_at(pack) for pack in packs]
    names = [name_of(pack, i) for i, pack in enumerate(packs)]
    if model is None:
        report = compared(opened, names=names)
    else:
        loaded, tokenizer = load_model(model, dtype=dtype, device=device, revision=revision)
        with Bars() as progress:
            report = compared(opened, names=names, model=loaded, tokenizer=tokenizer, progress=progress)
    if picture is not None:
        report.picture(picture)
    if as_json:
        print_json({"model": model, **report.to_json()})
    else:
        _print(report, picture)


def _print(report: ConflictReport, picture: Path | None) -> None:
    if report.findings:
        print_table(
            "Conflicts, then what else is worth knowing",
            ("kind", "pack", "edit", "pack", "edit", "score", "what"),
            (
                (f.kind, f.first.name, f.first.id, f.second.name, f.second.id, f"{f.score:.2f}", f.explanation)
                for f in report.findings[:MAX_ROWS]
            ),
            lines=True,
        )
    print_table(
        "Modules that two packs change",
        ("module", "first", "second", "range in common (by chance)", "cross-talk on first, on second"),
        (
            (
                overlap.module,
                report.packs[overlap.first],
                report.packs[overlap.second],
                f"{overlap.shared:.1%} ({overlap.chance:.1%})",
                _crosstalk(overlap.crosstalk),
            )
            for overlap in report.ranges
        ),
    )
    if report.keys:
        _print_keys(report)
    if report.interference is not None:
        _print_interference(report.packs, report.interference)
    facts = [("conflicts", str(len(report.conflicts)))]
    if len(report.findings) > MAX_ROWS:
        facts.append(("findings", f"{len(report.findings)}, the first {MAX_ROWS} shown; --json has all"))
    print_facts(facts if picture is None else [*facts, ("picture", str(picture))])


def _print_keys(report: ConflictReport) -> None:
    print_table(
        "Keys of the questions on the base, mean (largest) cosine",
        ("module", "first", "second", "at last token", "of content words", "cross-talk on first, on second"),
        (
            (
                overlap.module,
                report.packs[overlap.first],
                report.packs[overlap.second],
                f"{overlap.last[0]:.2f} ({overlap.last[1]:.2f})",
                f"{overlap.content[0]:.2f} ({overlap.content[1]:.2f})",
                _crosstalk(overlap.crosstalk),
            )
            for overlap in report.keys
        ),
    )


def _print_interference(packs: tuple[str, ...], measured: Interference) -> None:
    rows = [
        (name, _share(kept[i]), *("" if i == j else _share(share) for j, share in enumerate(kept)), _share(together))
        for i, (name, kept, together) in enumerate(zip(packs, measured.kept, measured.kept_together, strict=True))
    ]
    columns = ("edits of", "right alone", *(f"kept beside {name}" for name in packs), "kept with all")
    print_table("Edits asked with other packs attached", columns, rows)


def _crosstalk(ratios: tuple[float, float] | None) -> str:
    return "" if ratios is None else f"{ratios[0]:.2f}, {ratios[1]:.2f}"


def _share(value: float | None) -> str:
    return "none right alone" if value is None else f"{value:.0%}"
