"""`hf-edit locate`: which layers carry what the model answers to the edits' questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_edit.cli.apply import check_file
from hf_edit.cli.inputs import READERS, read_edits
from hf_edit.cli.options import Device, Dtype, Json, Model, Revision
from hf_edit.cli.output import last_text, print_facts, print_json, print_table, shortened
from hf_edit.cli.progress import Bars


if TYPE_CHECKING:
    from hf_edit.edits import EditSet
    from hf_edit.methods.locating.effects import Effects


def locate(
    model: Model,
    edits: Annotated[Path, typer.Option(help="File of edits; their prompts and subjects count.", show_default=False)],
    edits_format: Annotated[str, typer.Option(help=f"Layout of the file: {', '.join(READERS)}.")] = "jsonl",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N edits.")] = None,
    format: Annotated[
        str | None, typer.Option(help="Prompt format: chat, plain or qa. [default: chat if the model has a template]")
    ] = None,
    count: Annotated[int, typer.Option(help="How many layers to propose.")] = 1,
    token: Annotated[
        str | None,
        typer.Option(
            help="Class of tokens whose effects decide, as in the table. [default: last subject token if every edit "
            "names its subject, else last token]"
        ),
    ] = None,
    restored: Annotated[
        str,
        typer.Option(help="What is put back: mlp, a window of MLP outputs, or stream, one layer's residual stream."),
    ] = "mlp",
    window: Annotated[
        int | None, typer.Option(help="Layers put back together. [default: a fifth of the depth]")
    ] = None,
    noise: Annotated[float, typer.Option(help="Noise, in standard deviations of the embeddings.")] = 3.0,
    samples: Annotated[int, typer.Option(help="Draws of the noise.")] = 3,
    answer_tokens: Annotated[int, typer.Option(help="Tokens of the model's own answer that are scored.")] = 8,
    picture: Annotated[Path | None, typer.Option(help="Draw a heat map into this PNG.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Trace which tokens and layers carry the model's own answers, and propose the layers to edit."""
    if picture is not None:
        from hf_edit.methods.locating.picture import draw_effects, plotting

        plotting()  # find out before minutes of computing, not after
        check_file(picture)
    from hf_edit.methods.locating.effects import check_choice, propose_layers, trace_effects
    from hf_edit.models.editable import EditableModel
    from hf_edit.models.loading import load_model
    from hf_edit.prompting import PromptFormat

    edit_set = read_edits(edits, edits_format, limit)
    loaded, tokenizer = load_model(model, dtype=dtype, device=device, revision=revision)
    view = EditableModel.of(loaded)
    check_choice(view.n_layers, count, token)
    with Bars() as progress:
        effects = trace_effects(
            view,
            PromptFormat.of(format, tokenizer),
            edit_set,
            progress,
            restored=restored,
            window=window,
            noise=noise,
            samples=samples,
            answer_tokens=answer_tokens,
            seed=seed,
        )
    proposed = propose_layers(effects, count, token)
    if picture is not None:
        draw_effects(effects, picture, proposed)
    if as_json:
        print_json({"model": model, "proposed": list(proposed), **effects.to_json()})
    else:
        _print(edit_set, effects, proposed, picture)


def _print(edits: EditSet, effects: Effects, proposed: Sequence[int], picture: Path | None) -> None:
    from hf_edit.methods.locating.effects import CLASSES

    answers = (
        (shortened(last_text(edit.prompt), 80), shortened(e.answer, 60), f"{e.clean:.3f}", f"{e.corrupted:.3f}")
        for edit, e in zip(edits, effects.edits, strict=True)
    )
    print_table("What the model answers by itself", ("prompt", "answer", "score", "under noise"), answers)
    print_table("Score regained, by layer", ("layer", *CLASSES), _rows(effects, proposed))
    facts = [("proposed", ", ".join(map(str, proposed)) + " (marked *)")]
    print_facts(facts if picture is None else [*facts, ("picture", str(picture))])


def _rows(effects: Effects, proposed: Sequence[int]) -> Iterator[list[str]]:
    for layer, column in enumerate(effects.mean.T.tolist()):
        yield [f"{layer}{'*' if layer in proposed else ''}", *("" if x != x else f"{x:.4f}" for x in column)]
