"""The heat maps of a conflict report, as a PNG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_edit.compose.conflicts.report import ConflictReport, Finding
from hf_edit.methods.locating.picture import plotting


_MARKED = 12
"""Up to so many packs have figures in their cells."""


def draw_report(report: ConflictReport, path: str | os.PathLike[str]) -> None:
    """Write the heat maps: pack by pack the range in common, the edits kept where measured, and the cosines of keys.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    maps: list[tuple[str, Tensor, Sequence[str] | None]] = [
        ("conflicts found", _counts(report), report.packs),
        ("range in common (mean over modules)", _shared(report), report.packs),
    ]
    if report.interference is not None:
        kept = [[float("nan") if share is None else share for share in row] for row in report.interference.kept]
        maps.append(("edits kept: row's, beside column", torch.tensor(kept), report.packs))
    if report.cosines is not None:
        maps.append(("cosine of content keys, edit by edit", report.cosines, None))
    figure = plotting().Figure(figsize=(4.4 * len(maps), 4.2), layout="constrained")
    for axes, (title, values, names) in zip(figure.subplots(1, len(maps)), maps, strict=True):
        _draw(figure, axes, title, values, names)
        if names is None:
            _borders(axes, [edit.pack for edit in report.edits])
    figure.savefig(path, dpi=150, format="png")


def _draw(figure: Any, axes: Any, title: str, values: Tensor, names: Sequence[str] | None) -> None:
    highest = max(1.0, float(values.nan_to_num(0).max()))
    cells = axes.pcolormesh(values.numpy(), cmap="Purples", vmin=0, vmax=highest)
    axes.set_facecolor("0.9")
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_title(title, fontsize="medium", loc="left")
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_yticks([])
    if names is not None:
        places = [i + 0.5 for i in range(len(names))]
        axes.set_xticks(places, [_short(name) for name in names], rotation=30, ha="right")
        axes.set_yticks(places, [_short(name) for name in names])
        if len(names) <= _MARKED:
            for i, row in enumerate(values.tolist()):
                for j, value in enumerate(row):
                    colour = "white" if value > 0.6 * highest else "black"
                    axes.text(j + 0.5, i + 0.5, "–" if value != value else f"{value:.3g}", color=colour, ha="center")
    figure.colorbar(cells, ax=axes, shrink=0.75, pad=0.02)


def _borders(axes: Any, packs: Sequence[int]) -> None:
    """Lines between the edits of different packs."""
    for place in (i for i in range(1, len(packs)) if packs[i] != packs[i - 1]):
        axes.axhline(place, color="#d55e00", lw=0.8)
        axes.axvline(place, color="#d55e00", lw=0.8)


def _counts(report: ConflictReport) -> Tensor:
    counts = torch.zeros(len(report.packs), len(report.packs))
    for i, j in map(_packs, report.conflicts):
        counts[i, j] += 1
        counts[j, i] += 1
    return counts


def _shared(report: ConflictReport) -> Tensor:
    """(packs, packs), NaN for two that change no module together."""
    pairs: dict[tuple[int, int], list[float]] = {}
    for overlap in report.ranges:
        pairs.setdefault((overlap.first, overlap.second), []).append(overlap.shared)
    shared = torch.full((len(report.packs), len(report.packs)), float("nan")).fill_diagonal_(1.0)
    for (i, j), values in pairs.items():
        shared[i, j] = shared[j, i] = sum(values) / len(values)
    return shared


def _packs(finding: Finding) -> tuple[int, int]:
    return finding.first.pack, finding.second.pack


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"
