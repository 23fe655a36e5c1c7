"""What bench.json says of a cell: figures with intervals, costs, and a few answers; without the single records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

from hf_edit.bench.cells import Cell
from hf_edit.bench.costs import STATISTICS
from hf_edit.packs.evaluation import Evaluation, Figure


CURVED = "reliability.exact"
"""The metric whose retention along a pack's edits is drawn."""
FEWEST, POINTS = 20, 10
"""Edits of a pack from which on a curve says something, and its points."""
EXAMPLES = 2
"""Answers of each kind that are shown."""


def summary(cell: Cell, record: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a cell's record, as JSON."""
    evaluation = Evaluation.from_json(record["evaluation"], cell.name)
    return {
        "name": cell.name,
        "data": cell.data.name,
        "method": cell.method.label,
        "together": cell.together,
        "seed": cell.seed,
        "metrics": [
            asdict(replace(metric, before=_short(metric.before), after=_short(metric.after)))
            for metric in evaluation.metrics
        ],
        "packs": _packs(record["packs"]),
        "retention": _retention(evaluation, record["packs"]),
        "examples": _examples(evaluation),
        "protocol": dict(evaluation.protocol),
        "environment": {**evaluation.environment, "hardware": record["hardware"]},
        "seconds": _seconds(record),
        "peak_memory": record["peak_memory"],
    }


def _short(figure: Figure | None) -> Figure | None:
    return None if figure is None else replace(figure, values=())


def _packs(packs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How many there are, and the mean over them of what each is; norms are Frobenius norms."""
    if not packs:
        return None
    modules = {name: module["layer"] for pack in packs for name, module in pack["modules"].items()}

    def mean(name: str, what: str) -> float:
        return round(fmean(float(pack["modules"][name][what]) for pack in packs if name in pack["modules"]), 6)

    return {
        "count": len(packs),
        "bytes": fmean(float(pack["bytes"]) for pack in packs),
        "bytes_of_values": fmean(float(pack["bytes_of_values"]) for pack in packs),
        "modules": [
            {"name": name, "layer": layer, **{what: mean(name, what) for what in ("rank", "norm", "relative_norm")}}
            for name, layer in sorted(modules.items(), key=lambda item: (item[1], item[0]))
        ],
    }


def _retention(evaluation: Evaluation, packs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """After all edits of one pack, the share of each tenth of them, in their order, that is still answered."""
    found = [metric.after for metric in evaluation.metrics if metric.name == CURVED]
    values = found[0].values if found and found[0] is not None else ()
    if len(packs) != 1 or len(values) < FEWEST:
        return []
    ends = [len(values) * (i + 1) // POINTS for i in range(POINTS)]
    return [
        {"edits": end, "value": round(fmean(values[start:end]), 6)}
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def _examples(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The first answers of each kind of question, verbatim."""
    shown: dict[str, int] = {}
    examples = []
    for one in evaluation.generations:
        shown[one.kind] = shown.get(one.kind, 0) + 1
        if shown[one.kind] <= EXAMPLES:
            examples.append(
                {
                    "kind": one.kind,
                    "prompt": one.prompt,
                    "accepted": list(one.accepted[:1]),
                    "before": one.before,
                    "after": one.after,
                }
            )
    return examples


def _seconds(record: Mapping[str, Any]) -> dict[str, float]:
    """For each edit, for statistics (once per base: their results are kept), and for the evaluation.

    Packs that a resumed run finished have no seconds and are not among those whose edits share them.
    """
    parts: Sequence[Mapping[str, float]] = record["seconds"]
    timed = [(pack["edits"], part) for pack, part in zip(record["packs"], parts, strict=False) if part]  # or no packs
    statistics = sum(part.get(STATISTICS, 0.0) for _, part in timed)
    edits = sum(count for count, _ in timed)
    computing = sum(sum(part.values()) for _, part in timed) - statistics
    return {
        **({"per_edit": round(computing / edits, 4), "statistics": round(statistics, 3)} if edits else {}),
        "evaluation": round(float(sum(record["evaluation"]["seconds"].values())), 3),
    }
