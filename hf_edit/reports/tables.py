"""The figures of a bench as rows of text: the same on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from hf_edit.packs.card import shown_figure, shown_number
from hf_edit.reports.result import KEPT, TAUGHT, Row


Table: TypeAlias = tuple[list[str], list[list[str]]]
"""Columns and rows."""


def taught(rows: Sequence[Row], intervals: bool) -> Table:
    """Of one data set: a line for each cell with what its edits bring."""
    return _table(rows, TAUGHT, intervals)


def kept(rows: Sequence[Row], intervals: bool) -> Table:
    """The same with what they disturb."""
    return _table(rows, KEPT, intervals)


def costs(rows: Sequence[Row]) -> Table:
    """The same with what they cost; cells without packs are left out."""
    lines = [
        [
            named(row, rows),
            str(row.packs.count),
            f"{row.packs.bytes / 1e3:,.0f}",
            f"{max(module.rank for module in row.packs.modules):.0f}",
            f"{row.seconds['per_edit']:.3g}" if "per_edit" in row.seconds else "",
            f"{row.seconds['evaluation']:.3g}",
            f"{row.peak_memory[memory_place(rows)] / 1e9:.2f}",
        ]
        for row in rows
        if row.packs is not None
    ]
    return ["method", "packs", "kB each", "rank", "s per edit", "s to evaluate", "peak GB"], lines


def memory_place(rows: Sequence[Row]) -> str:
    """Whose memory is compared: the device's where all computed on one, else the process's."""
    return "cuda" if all("cuda" in row.peak_memory for row in rows) else "process"


def named(row: Row, among: Sequence[Row]) -> str:
    """The row's label, with its seed where there are several."""
    return row.label if len({other.seed for other in among}) == 1 else f"{row.label}, seed {row.seed}"


def _table(rows: Sequence[Row], metrics: Mapping[str, str], intervals: bool) -> Table:
    shown = {name: short for name, short in metrics.items() if any(row.metric(name) for row in rows)}
    lines = [[named(row, rows), *(_cell(row, name, intervals) for name in shown)] for row in rows]
    return ["method", *shown.values()], lines


def _cell(row: Row, name: str, intervals: bool) -> str:
    metric = row.metric(name)
    if metric is None:
        return ""
    return shown_figure(metric.figure) if intervals else shown_number(metric.figure.value)
