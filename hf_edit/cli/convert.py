"""`hf-edit convert`: a pack in another layout, of a smaller rank or on a few columns, with what that costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_edit.cli.apply import check_target
from hf_edit.cli.inputs import read_settings
from hf_edit.cli.options import Answers, Assignments, Config, Device, Dtype, Json, Out, Pack, Revision
from hf_edit.cli.output import folder_size, last_text, print_facts, print_json, print_table, readable_size, shortened
from hf_edit.cli.packs import pack_at
from hf_edit.cli.progress import Bars
from hf_edit.errors import ConfigError
from hf_edit.evaluation.scores import exact


if TYPE_CHECKING:
    from torch import Tensor

    from hf_edit.compose.sparsify import SparsifyConfig
    from hf_edit.packs.pack import EditPack
    from hf_edit.solvers.low_rank import LowRankDelta


def convert(
    pack: Pack,
    out: Out,
    layout: Annotated[str, typer.Option(help="portable, compact, bf16, sparse or all-layers.")] = "portable",
    rank: Annotated[int | None, typer.Option(min=1, help="Truncate every change to this rank.")] = None,
    columns: Annotated[int | None, typer.Option(min=1, help="Solve on so many columns of each weight.")] = None,
    bytes: Annotated[
        int | None, typer.Option(min=1, help="Solve on as many columns as fit into so many bytes.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The base model: for --columns, --bytes and --whitened; for all-layers where the pack names none on "
            "the Hub; and for the answers before and after where something is lost."
        ),
    ] = None,
    whitened: Annotated[
        bool, typer.Option("--whitened", help="Truncate so that outputs, not weights, change least; needs --model.")
    ] = False,
    config: Config = None,
    set_: Assignments = None,
    values: Annotated[bool, typer.Option(help="Keep what the change was solved from, if the pack has it.")] = True,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    answers: Answers = True,
    as_json: Json = False,
) -> None:
    """Write a pack in another layout, and say what is lost: in the weights, and in answers if --model is given.

    --rank, --columns, --bytes and the layout bf16 lose something; the others keep the change as it is.
    """
    from hf_edit.compose.sparsify import SparsifyConfig
    from hf_edit.models.loading import load_model
    from hf_edit.packs.pack import EditPack

    check_target(out)
    solving = columns is not None or bytes is not None
    assigned = read_settings(config, set_ or (), {})
    _check_options(layout, rank, solving, whitened, model, assigned)
    given = pack_at(pack)
    lossy = solving or rank is not None or layout == "bf16"
    settings = SparsifyConfig.from_mapping(assigned)
    base = load_model(model, dtype=dtype, device=device, revision=revision) if model and lossy else None

    converted, errors = given, dict[str, Any]()
    if rank is not None:
        converted, errors = given.truncated(
            rank, moments=_moments(given, *base, settings) if whitened and base else None
        )
    elif solving and base:
        converted = _sparsified(given, *base, columns, bytes, settings)
    if layout == "all-layers" and converted.manifest.zero_filled is None:
        # a path that a pack names for its base is a stranger's word
        converted = converted.with_all_layers(_skeleton(model or given.manifest.base.id, revision))
    converted.save_pretrained(out, layout=layout, values=values)

    saved = EditPack.from_pretrained(out)
    modules = {
        name: {"rank": delta.rank, "error_weights": _distance(given.deltas[name], delta)}
        for name, delta in saved.deltas.items()
    }
    for name, error in errors.items():
        if error.outputs is not None:
            modules[name]["error_outputs"] = round(error.outputs, 6)
    edits: list[dict[str, Any]] = [{"id": edit.id, "target": edit.target} for edit in saved.edits]
    if base and answers:
        for record, before, after in zip(edits, _answers(given, *base), _answers(saved, *base), strict=True):
            record |= {"before": before, "exact_before": exact(before, record["target"])}
            record |= {"after": after, "exact": exact(after, record["target"])}
    report = {"pack": str(out), "layout": layout, "bytes": folder_size(out), "modules": modules, "edits": edits}
    if as_json:
        print_json(report)
    else:
        _print(saved, report)


def _check_options(
    layout: str, rank: int | None, solving: bool, whitened: bool, model: str | None, assigned: dict[str, Any]
) -> None:
    """Raise a ConfigError for options that do not go together."""
    if solving and rank is not None:
        raise ConfigError("--rank and --columns or --bytes are two budgets.", "Give one of them.")
    if whitened and rank is None:
        raise ConfigError("--whitened says how to truncate, and there is no --rank.", "Give --rank, or leave it out.")
    if assigned and not (solving or whitened):
        raise ConfigError(
            f"Settings ({', '.join(assigned)}) are of solving on columns and of whitening, and neither is asked for.",
            "Leave out --config and --set, or give --columns, --bytes or --whitened.",
        )
    if (solving or whitened) and model is None:
        raise ConfigError(
            f"{'--whitened needs' if whitened else '--columns and --bytes need'} the base model.",
            "Give it with --model.",
        )
    if solving and layout not in ("sparse", "portable"):
        raise ConfigError(
            f"A pack on few columns has no use for the layout {layout}.", "Use --layout sparse, or portable."
        )
    if layout == "sparse" and rank is not None:
        raise ConfigError("A truncated change touches every column.", "Use --columns N to make it sparse.")


def _skeleton(base: str | None, revision: str | None) -> Any:
    """The base without its weights.

    Raises:
        ConfigError: no base is known, or its config cannot be read.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if base is None:
        raise ConfigError("The pack does not say where on the Hub its base is.", "Give it with --model.")
    try:
        config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"The config of the base {base} cannot be read: {reason}", "Give the base with --model."
        ) from error


def _moments(pack: EditPack, model: Any, tokenizer: Any, settings: SparsifyConfig) -> dict[str, Tensor]:
    from hf_edit.compose.sparsify import moments_for

    with Bars() as progress:
        return moments_for(pack, model=model, tokenizer=tokenizer, config=settings, progress=progress)


def _sparsified(
    pack: EditPack, model: Any, tokenizer: Any, columns: int | None, bytes: int | None, settings: SparsifyConfig
) -> EditPack:
    from hf_edit.compose.sparsify import sparsify

    with Bars() as progress:
        return sparsify(
            pack,
            model=model,
            tokenizer=tokenizer,
            columns=columns,
            bytes=bytes,
            config=settings,
            progress=progress,
        )


def _distance(before: LowRankDelta, after: LowRankDelta) -> float:
    """|before - after| / |before|, Frobenius."""
    whole = before.norm()
    return round(before.minus(after).norm() / whole, 6) if whole else 0.0


def _answers(pack: EditPack, model: Any, tokenizer: Any) -> list[str]:
    """What the base says with the pack on to the prompts of its edits."""
    from hf_edit.compose.attach import attach, detach
    from hf_edit.evaluation.answers import edit_answers
    from hf_edit.prompting import PromptFormat

    prompts = PromptFormat.of(pack.manifest.prompt_format.name, tokenizer)
    name = attach(model, pack)
    try:
        return edit_answers(model, prompts, pack.edits)
    finally:
        detach(model, name)


def _print(pack: EditPack, report: dict[str, Any]) -> None:
    def percent(share: float | None) -> str:
        return "not measured" if share is None else f"{100 * share:.2f} %"

    if "exact" in report["edits"][0]:
        rows = [
            (
                shortened(last_text(edit.prompt)),
                shortened(record["before"]),
                shortened(record["after"]),
                f"{'yes' if record['exact_before'] else 'no'} -> {'yes' if record['exact'] else 'no'}",
            )
            for edit, record in zip(pack.edits, report["edits"], strict=True)
        ]
        print_table("Answers", ("prompt", "pack as given", "converted", "exact"), rows, lines=True)
    rows = [
        (name, figures["rank"], percent(figures["error_weights"]), percent(figures.get("error_outputs")))
        for name, figures in report["modules"].items()
    ]
    print_table("Changed modules", ("module", "rank", "lost of the weights", "lost of the outputs"), rows)
    print_facts((("pack", report["pack"]), ("layout", report["layout"]), ("size", readable_size(report["bytes"]))))
