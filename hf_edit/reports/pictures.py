"""Pictures of a bench, by matplotlib: PNG for files, SVG for the page."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from hf_edit.methods.locating.picture import plotting
from hf_edit.packs.evaluation import Figure
from hf_edit.reports.drawing import (
    BEFORE,
    element,
    legend,
    logarithmic,
    marks_of,
    panels_of,
    reach,
    styles_of,
    whisker,
)
from hf_edit.reports.result import EFFICACY, LOCALITIES, Result, Row
from hf_edit.reports.tables import memory_place


def before_after(result: Result) -> Any:
    """For each data set and cell, how many answers are right word for word, before and after."""
    groups = {
        data: [row for row in rows if (metric := row.metric(EFFICACY)) and metric.after]
        for data, rows in result.by_data().items()
    }
    groups = {data: rows for data, rows in groups.items() if rows}
    if not groups:
        return None
    styles = styles_of(result)
    figure, panels = panels_of(list(groups), lambda data: 0.24 * len(groups[data]))
    for data, axes in panels.items():
        rows = groups[data][::-1]
        for place, row in enumerate(rows):
            metric = row.metric(EFFICACY)
            assert metric is not None and metric.after is not None
            if metric.before is not None:
                axes.plot([metric.before.value, metric.after.value], [place, place], color="#dddddd", lw=1, zorder=1)
                axes.plot(metric.before.value, place, "o", mfc="white", mec=BEFORE, ms=5, zorder=2, clip_on=False)
            whisker(axes, metric.after, place, styles[row.method]["color"])
            axes.plot(metric.after.value, place, "o", color=styles[row.method]["color"], ms=5, zorder=3, clip_on=False)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_title(data, loc="left")
        axes.set_xlim(0, 1)
        axes.set_xlabel("answered word for word")
        axes.grid(axis="x", color="#eeeeee")
    figure.suptitle("Edits answered before (hollow) and after, with 95 % intervals", x=0.01, ha="left", fontsize=11)
    return figure


def trade_off(result: Result) -> Any:
    """Efficacy against locality, cell by cell."""
    groups = {}
    for data, rows in result.by_data().items():
        kind = next((name for name in LOCALITIES if any(_after(row, name) for row in rows)), None)
        points = [
            (row, held, right)
            for row in rows
            if (held := _after(row, kind)) is not None and (right := _after(row, EFFICACY)) is not None
        ]
        if points:
            groups[data] = (kind, points)
    if not groups:
        return None
    styles = styles_of(result)
    figure, panels = panels_of(list(groups), lambda data: 2.6)
    sizes = sorted({row.together or 0 for _, points in groups.values() for row, _, _ in points})
    for data, axes in panels.items():
        kind, points = groups[data]
        for row, held, right in points:
            larger = sizes.index(row.together or 0) / max(1, len(sizes) - 1)
            axes.errorbar(
                held.value,
                right.value,
                xerr=reach(held),
                yerr=reach(right),
                elinewidth=0.6,
                alpha=0.85,
                clip_on=False,
                **{**styles[row.method], "linestyle": "none", "markersize": 5 + 3 * larger},
            )
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(data, loc="left")
        axes.set_xlabel(f"{LOCALITIES[str(kind)]}: same answer as before")
        axes.set_ylabel("answered word for word")
        axes.grid(color="#eeeeee")
    shown = dict.fromkeys(row.method for _, points in groups.values() for row, _, _ in points)
    legend(figure, {name: {**styles[name], "linestyle": "none"} for name in shown})
    sized = "; larger marks: more edits in a pack" if len(sizes) > 1 else ""
    figure.suptitle(f"Efficacy against locality{sized}", x=0.01, ha="left", fontsize=11)
    return figure


def retention(result: Result) -> Any:
    """After all edits of a pack, how many of the first, second, ... tenth of them are answered."""
    groups = {data: [row for row in rows if row.retention] for data, rows in result.by_data().items()}
    groups = {data: rows for data, rows in groups.items() if rows}
    if not groups:
        return None
    styles = styles_of(result)
    figure, panels = panels_of(list(groups), lambda data: 2.2)
    for data, axes in panels.items():
        for row in groups[data]:
            places = [point.edits for point in row.retention]
            axes.plot(places, [point.value for point in row.retention], **styles[row.method], clip_on=False, ms=4)
        axes.set_ylim(0, 1.02)
        axes.set_xlim(left=0)
        axes.set_title(data, loc="left")
        axes.set_xlabel("edit, in the order of teaching")
        axes.set_ylabel("answered word for word")
        axes.grid(color="#eeeeee")
    legend(figure, {row.method: styles[row.method] for rows in groups.values() for row in rows})
    figure.suptitle("Retention: edits still answered after the last one, by tenths", x=0.01, ha="left", fontsize=11)
    return figure


def layers(result: Result) -> Any:
    """Where packs change the model, and how much: norms and ranks by layer, of each method's largest packs."""
    groups = {data: _largest(rows) for data, rows in result.by_data().items()}
    groups = {data: rows for data, rows in groups.items() if rows}
    if not groups:
        return None
    styles = styles_of(result)
    figure = plotting().Figure(figsize=(1.0 + max(5.0, 2.7 * len(groups)), 5.2), layout="constrained")
    grid = figure.subplots(2, len(groups), squeeze=False, sharex=True, sharey="row")
    for column, (data, rows) in enumerate(groups.items()):
        for axes, what in zip(grid[:, column], ("relative_norm", "rank"), strict=True):
            for row in rows:
                points = [(module.layer, getattr(module, what)) for module in row.packs.modules] if row.packs else []
                axes.plot(*zip(*points, strict=True), **styles[row.method], ms=4, lw=1)
            logarithmic(axes)
            axes.set_xlim(-0.5, int(result.base["layers"]) - 0.5)
            axes.grid(color="#eeeeee")
        grid[0, column].set_title(data, loc="left")
        grid[1, column].set_xlabel("layer")
    grid[0, 0].set_ylabel("|update| / |weight|, Frobenius")
    grid[1, 0].set_ylabel("rank")
    legend(figure, {row.method: styles[row.method] for rows in groups.values() for row in rows})
    figure.suptitle("The update by layer, mean over packs", x=0.01, ha="left", fontsize=11)
    return figure


def costs(result: Result) -> Any:
    """Seconds per edit, memory at its peak and size of packs: a mark for each data set."""
    rows = [row for row in result.cells if row.packs is not None]
    if not rows:
        return None
    labels = list(dict.fromkeys(row.label for row in rows))[::-1]
    data = {name: {**mark, "linestyle": "none"} for name, mark in marks_of(row.data for row in rows).items()}
    place = memory_place(rows)
    measured: dict[str, Callable[[Row], float | None]] = {
        "seconds per edit": lambda row: row.seconds.get("per_edit"),
        f"peak memory, GB ({place})": lambda row: row.peak_memory[place] / 1e9,
        "pack, kB": lambda row: row.packs.bytes / 1e3 if row.packs else 0.0,
    }
    figure = plotting().Figure(figsize=(10.5, 1.5 + 0.24 * len(labels)), layout="constrained")
    for axes, (title, value) in zip(figure.subplots(1, len(measured), sharey=True), measured.items(), strict=True):
        for row in rows:
            if (known := value(row)) is not None:
                axes.plot(known, labels.index(row.label), **data[row.data], ms=5, alpha=0.85, clip_on=False)
        axes.set_xlim(left=0)
        axes.set_ylim(-0.6, len(labels) - 0.4)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_title(title, loc="left")
        axes.grid(color="#eeeeee")
    legend(figure, data)
    figure.suptitle("What an edit costs", x=0.01, ha="left", fontsize=11)
    return figure


PICTURES: dict[str, Callable[[Result], Any]] = {
    "before_after": before_after,
    "trade_off": trade_off,
    "retention": retention,
    "layers": layers,
    "costs": costs,
}
"""Name -> what draws it; None where there is nothing to draw."""


def drawn(result: Result, format: str) -> dict[str, bytes]:
    """Name -> a picture; those for which there is nothing to draw are left out. The same result gives the same bytes.

    Args:
        format: `png`, or `svg` for an element that can stand in a page.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plotting()
    from matplotlib import rc_context

    found = {}
    settings = {"svg.fonttype": "none", "svg.hashsalt": "hf-edit", "font.size": 9, "axes.titlesize": 10}
    with rc_context({**settings, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False}):
        for name, draw in PICTURES.items():
            figure = draw(result)
            if figure is not None:
                buffer = io.BytesIO()
                if format == "png":
                    figure.savefig(buffer, format="png", dpi=150)
                else:
                    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Type": None})
                found[name] = buffer.getvalue() if format == "png" else element(buffer.getvalue(), name)
    return found


def _after(row: Row, name: str | None) -> Figure | None:
    metric = None if name is None else row.metric(name)
    return None if metric is None else metric.after


def _largest(rows: Sequence[Row]) -> list[Row]:
    """Of each method the cell with the most edits in a pack."""
    found: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: -(row.together or 0)):
        if row.packs is not None:
            found.setdefault(row.method, row)
    return list(found.values())
