"""The model card, README.md, of a pack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from huggingface_hub import CardData

from hf_edit.edits import Edit, EditSet, question_of
from hf_edit.errors import PackError, visible
from hf_edit.packs.evaluation import Evaluation, Figure, Metric
from hf_edit.packs.manifest import Manifest
from hf_edit.solvers.low_rank import LowRankDelta


_MAX_CELL = 160
MAX_ROWS = 50
_BAR = 20
ALMOST_ALL = 0.9995
"""From here on three digits would say 1."""
_OTHERS = ("unrelated", "strangers", "locality")
"""Evaluators of answers that were not to change."""
_UNMEASURED = "How far was not measured: `hf-edit evaluate` does."
_MEASURED = "The table above says how far."
_LOWER = {True: "", False: " Lower is better."}


def model_card(
    manifest: Manifest, edits: EditSet, deltas: Mapping[str, LowRankDelta], evaluation: Evaluation | None = None
) -> bytes:
    """The card: YAML metadata, the edits, figures where there are some, how to load them, what the pack changes, where
    it comes from, and its limits.

    The base is named only by its id on the Hub.
    """
    base = manifest.base.id
    template = Template((files("hf_edit.packs") / "card.md").read_text(encoding="utf-8"))
    sparse = manifest.layout == "sparse"
    title = escaped(question_of(edits[0].prompt)) if len(edits) == 1 else counted(len(edits), "edit")
    text = template.substitute(
        title=title,
        figures_metadata="" if evaluation is None else _model_index(evaluation, counted(len(edits), "edit")),
        measured="" if evaluation is None else _measured(evaluation),
        tag="" if sparse else "\n- lora",
        kind="an adapter that changes a few input columns of its layers and"
        if sparse
        else "a plain LoRA adapter that",
        needs=", which has to be installed and imported to load it" if sparse else ", which nobody needs to load it",
        first="import hf_edit  # knows this kind of adapter\n" if sparse else "",
        base_metadata=f"\nbase_model: {base}\nbase_model_relation: adapter" if base else "",
        base=f"`{base}`" if base else f"a {manifest.base.model_type} model",
        base_argument=f'"{base}"' if base else '"path of the base model"',
        method=manifest.method.name,
        count=counted(len(edits), "edit"),
        rows=rows_of(edits, "edits.jsonl"),
        prompt_format=manifest.prompt_format.name,
        modules=counted(len(manifest.modules), "linear layer"),
        rank=max(module.rank for module in manifest.modules.values()),
        changed="\n".join(_changed(deltas)),
        history="\n".join(ancestry(manifest)),
        moved=_MEASURED if evaluation is not None and _tells_of_others(evaluation) else _UNMEASURED,
    )
    return text.encode()


def _model_index(evaluation: Evaluation, edits: str) -> str:
    """The figures as the Hub reads them off a card's metadata, as YAML."""
    results: dict[str, Any] = {
        "task": {"type": "text-generation"},
        "dataset": {"type": "hf-edit", "name": "The edits of this pack, with their probes"},
        "metrics": [
            {"type": metric.name, "name": f"{metric.name} ({metric.protocol})", "value": metric.figure.value}
            for metric in evaluation.metrics
        ],
    }
    index: dict[str, Any] = {"model-index": [{"name": f"Edit pack of {edits}", "results": [results]}]}
    return f"\n{CardData(**index).to_yaml()}"


def _measured(evaluation: Evaluation) -> str:
    """A section of the card: every metric before and after, with what it says."""
    rows = [
        f"| `{metric.name}` | {shown_figure(metric.before)} | {shown_figure(metric.after)} | {metric.figure.n} | "
        f"{metric.protocol} | {escaped(metric.compared, None)}{_LOWER[metric.higher_is_better]} |"
        for metric in evaluation.metrics
    ]
    shown = list(_shares(evaluation.metrics))
    picture = ["```text", *shown, "```", ""] if shown else []
    protocol, environment = evaluation.protocol, evaluation.environment
    facts = [
        f"{name} {escaped(str(source[key]))}"
        for name, source, key in (
            ("Prompt format", protocol, "format"),
            ("decoding", protocol, "decoding"),
            ("answers cut off at", protocol, "max_new_tokens"),
            ("dtype", environment, "dtype"),
            ("device", environment, "device"),
            ("seed", environment, "seed"),
        )
        if key in source
    ]
    return "\n".join(
        [
            "\n## Measured\n",
            "The base before, and the same with this pack. In brackets 95 % intervals over the n records; "
            "`evaluation.json` has every answer word for word. Figures of different protocols do not compare.\n",
            *picture,
            "| | before | after | n | protocol | what it says |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"{'; '.join(facts)}.\n" if facts else "",
        ]
    )


def _tells_of_others(evaluation: Evaluation) -> bool:
    """Whether something was measured at answers that were not to change."""
    return any(metric.name.partition(".")[0] in _OTHERS for metric in evaluation.metrics)


def _shares(metrics: Iterable[Metric]) -> Iterator[str]:
    """The first share that each evaluator measured, before and after, as bars."""
    seen: set[str] = set()
    for metric in metrics:
        evaluator = metric.name.partition(".")[0]
        figures = {"before": metric.before, "after": metric.after}
        if evaluator in seen or not (
            metric.higher_is_better and all(0 <= f.value <= 1 for f in figures.values() if f)
        ):
            continue
        seen.add(evaluator)
        label = metric.name
        for when, figure in figures.items():
            if figure is not None:
                yield f"{label:<24} {when:<6} {_bar(figure.value)} {shown_number(figure.value)}"
                label = ""


def _changed(deltas: Mapping[str, LowRankDelta]) -> Iterator[str]:
    """The rows of a table of the changed maps, with a bar beside the largest norm's."""
    norms = {name: delta.norm() for name, delta in list(deltas.items())[:MAX_ROWS]}
    largest = max(norms.values()) or 1.0
    for name, norm in norms.items():
        yield f"| `{name}` | {deltas[name].rank} | {norm:.3g} | {_bar(norm / largest)} |"
    if len(deltas) > MAX_ROWS:
        yield f"| … | | {len(deltas) - MAX_ROWS} more | |"


def _bar(share: float) -> str:
    full = min(round(_BAR * share), _BAR if share >= 1 else _BAR - 1)  # full only of all
    return "█" * full + "░" * (_BAR - full)


def shown_figure(figure: Figure | None) -> str:
    """`0.85 [0.74, 0.94]`."""
    if figure is None:
        return ""
    interval = ""
    if figure.low is not None and figure.high is not None:
        interval = f" [{shown_number(figure.low)}, {shown_number(figure.high)}]"
    return f"{shown_number(figure.value)}{interval}"


def shown_number(value: float) -> str:
    """Three digits; thousands in full, and a share below 1 is not rounded to 1."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return "0.999" if ALMOST_ALL <= value < 1 else f"{value:.3g}"


def rows_of(edits: Sequence[Edit], file: str) -> str:
    """The rows of a table of edits; of very many the first, and where the others are."""
    rows = [f"| {escaped(e.id)} | {escaped(question_of(e.prompt))} | {escaped(e.target)} |" for e in edits[:MAX_ROWS]]
    more = [f"| … | {len(edits) - MAX_ROWS} more in {file} | … |"] if len(edits) > MAX_ROWS else []
    return "\n".join([*rows, *more])


def ancestry(manifest: Manifest) -> list[str]:
    """How the pack was made, and from what, as a Markdown list.

    Raises:
        PackError: the manifest tells of parents in a way that this hf_edit does not know.
    """
    try:
        return list(_made([manifest.lineage()]))
    except (AttributeError, KeyError, TypeError) as error:  # what a pack says of its parents is not checked on reading
        raise PackError("The parents in edit_pack.json cannot be read.", "Get the pack anew.") from error


def _made(lineages: Sequence[Mapping[str, Any]], depth: int = 0) -> Iterator[str]:
    """One line per pack, each followed by those that it was made from."""
    for lineage in lineages:
        seed = "" if lineage["seed"] is None else f", seed {escaped(str(lineage['seed']))}"
        count, digest = counted(lineage["edits"]["count"], "edit"), lineage["edits"]["sha256"][:12]
        edits = f"{escaped(count)}, digest {escaped(digest)}"
        origin = ", from:" if lineage["parents"] else ""
        yield f"{'  ' * depth}- {escaped(lineage['method']['name'])} ({edits}{seed}){origin}"
        yield from _made(lineage["parents"], depth + 1)


def escaped(text: str, longest: int | None = _MAX_CELL) -> str:
    """Text on one line, cut where it is long, that neither Markdown nor HTML takes for more than text."""
    line = visible(" ".join(text.split()))
    if longest is not None and len(line) > longest:
        line = line[: longest - 1] + "…"
    for character in "\\`*_[]|#~!":
        line = line.replace(character, f"\\{character}")
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def counted(number: int, noun: str) -> str:
    """`1 edit`, `2 edits`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
