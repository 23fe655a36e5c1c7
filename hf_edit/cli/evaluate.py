"""`hf-edit evaluate`: what a model says before and after an edit, measured."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_edit.cli.apply import check_file, check_target
from hf_edit.cli.inputs import READERS, parts, read_settings
from hf_edit.cli.options import Device, Dtype, Json, Model, Only, Revision, Seed, replaceable
from hf_edit.cli.output import print_facts, print_json, print_table
from hf_edit.cli.packs import pack_at
from hf_edit.cli.progress import Bars
from hf_edit.errors import ConfigError, HfEditWarning
from hf_edit.processes import is_first, placed


if TYPE_CHECKING:
    from hf_edit.evaluation.config import Material
    from hf_edit.packs.evaluation import Evaluation
    from hf_edit.packs.pack import EditPack


def evaluate(
    model: Model,
    pack: Annotated[
        str | None,
        typer.Argument(help="A pack: directory or Hub id. Without one the model is measured as it is."),
    ] = None,
    edits: Annotated[
        Path | None, typer.Option(help="File of edits to ask, with their probes. [default: those of the pack]")
    ] = None,
    edits_format: Annotated[str, typer.Option(help=f"Layout of the file: {', '.join(READERS)}.")] = "jsonl",
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only the first N edits.")] = None,
    only: Only = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text whose perplexity is measured.")] = None,
    material: Annotated[
        Path | None,
        typer.Option(help="JSON object with old_answers, aliases, strangers or unrelated, in place of the data's."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings of the evaluation, .json or .toml.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be repeated.")
    ] = None,
    seed: Seed = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    out: Annotated[Path | None, typer.Option(help="File for the whole evaluation, as JSON.")] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Write the evaluation into the pack, and onto its card.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure a model before and after a pack: by what it says on its own first of all.

    Questions are answered freely, greedily and to a natural stop: the edits' own and other wordings of them, what must
    not change, and what follows from the edits. Every figure comes with a 95 % interval and its protocol. Several
    processes, started by `accelerate launch` or `torchrun`, share the questions.
    """
    from hf_edit.datasets.formats import read_cases
    from hf_edit.datasets.records import edits_of
    from hf_edit.evaluation.config import EvaluateConfig, Material
    from hf_edit.evaluation.run import evaluate as evaluated
    from hf_edit.models.loading import load_model

    named = None if only is None else parts(only, "--only")
    settings = EvaluateConfig.from_mapping(read_settings(config, set_ or (), {"evaluators": named, "seed": seed}))
    if save:
        _check_savable(pack)
    if out is not None:
        check_file(out)
    opened = None if pack is None else pack_at(pack)
    cases = [] if edits is None else read_cases(edits, edits_format, limit)
    asked = None if edits is None else edits_of(cases, edits)
    if asked is None and limit is not None and opened is not None:
        asked = opened.edits[:limit]
    if save and asked is not None:
        raise ConfigError(
            "--save is given, and what is asked are not the edits of the pack as it lists them.",
            "Leave out --edits and --limit, or --save; --out keeps the figures in a file.",
        )
    known = _completed(Material.of(cases, edits_format), material, text)
    with Bars() as progress:
        base, tokenizer = load_model(model, dtype=dtype, device=placed(device), revision=revision)
        evaluation = evaluated(base, tokenizer, opened, asked, settings, material=known, progress=progress)
    if not is_first():
        return
    if out is not None:
        out.write_text(json.dumps(evaluation.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if save and opened is not None and pack is not None:
        _save(opened, evaluation, Path(pack))
    if as_json:
        print_json(evaluation.to_json())
    else:
        _print(evaluation)


def _completed(material: Material, file: Path | None, text: Path | None) -> Material:
    """What the data knows; what the file holds takes its place."""
    from hf_edit.validation import located, parse_json, read_text

    if file is not None:
        with located(str(file)):
            material = material.with_json(parse_json(read_text(file)))
    return material if text is None else replace(material, text=read_text(text))


def _check_savable(pack: str | None) -> None:
    """Find out before minutes of asking, not after, that there is no folder that can be saved into."""
    if pack is None or not Path(pack).is_dir():
        raise ConfigError(
            f"{pack or 'No pack'} is no folder that an evaluation could be saved in.",
            "Give the folder of a pack; `hf-edit pull` fetches one from the Hub.",
        )
    replaceable(Path(pack))
    check_target(Path(pack))


def _save(pack: EditPack, evaluation: Evaluation, folder: Path) -> None:
    from hf_edit.files.atomic import write_directory
    from hf_edit.files.reading import PlainFolder
    from hf_edit.packs.contents import CARD, MANIFEST, is_pack_file, to_files

    signed = any(folder.glob("*.sig"))
    before, now = ({metric.name for metric in one.metrics} if one else set() for one in (pack.evaluation, evaluation))
    lost = sorted(before - now)
    if lost:
        warnings.warn(
            f"Figures that were not measured again are gone from the pack: {', '.join(lost)}.",
            HfEditWarning,
            stacklevel=2,
        )
    card = PlainFolder(folder).read(CARD) if (folder / CARD).exists() else None
    files = to_files(pack.with_evaluation(evaluation), pack.manifest.layout, pack.source is not None, card)
    write_directory(folder, files, marker=MANIFEST, known=is_pack_file)
    if signed:
        warnings.warn(
            f"The signature of {folder} was of the pack without figures and is gone: sign it again.",
            HfEditWarning,
            stacklevel=2,
        )


def _print(evaluation: Evaluation) -> None:
    from hf_edit.packs.card import shown_figure

    edited = any(metric.after for metric in evaluation.metrics)
    rows = [
        (
            metric.name + ("" if metric.higher_is_better else " (lower is better)"),
            shown_figure(metric.before),
            *([shown_figure(metric.after)] if edited else []),
            metric.figure.n,
            metric.protocol,
        )
        for metric in evaluation.metrics
    ]
    columns = ("metric", "before", "after", "n", "protocol") if edited else ("metric", "model", "n", "protocol")
    print_table("Measured, with 95 % intervals", columns, rows)
    protocol, seconds = evaluation.protocol, evaluation.seconds
    print_facts(
        (
            ("format", protocol["format"]),
            ("decoding", f"{protocol['decoding']}, cut off at {protocol['max_new_tokens']} tokens"),
            ("edits", protocol["edits"]["count"]),
            ("questions", len(evaluation.generations)),
            ("took", " + ".join(f"{value:.1f} s" for value in seconds.values())),
        )
    )
