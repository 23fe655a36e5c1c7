"""What the pictures of a bench share: colours, panels, legends, and SVG that can stand in a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from typing import Any

from hf_edit.methods.locating.picture import plotting
from hf_edit.packs.evaluation import Figure
from hf_edit.reports.result import Result


COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444", "#8c6bb1")
"""Told apart by colour-blind readers as well (Okabe and Ito)."""
MARKERS = "osD^vP"
LINES = ("-", "--", ":", "-.")
BEFORE = "#999999"
ACROSS = 3
"""Panels in a row, at most."""

Style = Mapping[str, Any]


def styles_of(result: Result) -> dict[str, Style]:
    """Method -> colour, mark and line, the same in all pictures."""
    return marks_of(row.method for row in result.cells)


def marks_of(names: Iterable[str]) -> dict[str, Style]:
    """Name -> colour, mark and line, in the order of their first use."""
    return {
        name: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[(i + i // len(COLOURS)) % len(MARKERS)],
            "linestyle": LINES[i // len(COLOURS) % len(LINES)],
        }
        for i, name in enumerate(dict.fromkeys(names))
    }


def panels_of(names: Sequence[str], height: Callable[[str], float]) -> tuple[Any, dict[str, Any]]:
    """A figure with a panel for each name."""
    across = min(ACROSS, len(names))
    down = ceil(len(names) / across)
    tall = max(map(height, names)) + 1.0
    figure = plotting().Figure(figsize=(max(6.0, 3.6 * across), 0.5 + down * tall), layout="constrained")
    cells = figure.subplots(down, across, squeeze=False).flatten()
    for unused in cells[len(names) :]:
        unused.set_visible(False)
    return figure, dict(zip(names, cells, strict=False))


def legend(figure: Any, styles: Mapping[str, Style]) -> None:
    """One legend for all panels, below them."""
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], label=name, markersize=5, **style) for name, style in styles.items()]
    figure.legend(handles=marks, loc="outside lower left", ncols=6, frameon=False, fontsize=8)


def logarithmic(axes: Any) -> None:
    """A logarithmic y axis with plain numbers, a few of them even where it spans less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def whisker(axes: Any, figure: Figure, place: float, colour: str) -> None:
    """The interval of a figure, as a line at that height."""
    if figure.low is not None:
        axes.plot([figure.low, figure.high], [place, place], color=colour, lw=1.4, alpha=0.6, zorder=2)


def reach(figure: Figure) -> list[list[float]] | None:
    """How far the interval's ends are from the value, as matplotlib wants it."""
    if figure.low is None or figure.high is None:
        return None
    return [[max(0.0, figure.value - figure.low)], [max(0.0, figure.high - figure.value)]]


def element(svg: bytes, name: str) -> bytes:
    """The `svg` element alone, with ids of its own: several stand in one page."""
    text = svg.decode()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'(\bid="|\burl\(#|\bhref="#)', rf"\g<1>{name}-", text).encode()
