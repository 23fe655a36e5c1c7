from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_edit.errors import ConfigError
from hf_edit.reports import tables
from hf_edit.reports.pictures import PICTURES, drawn
from hf_edit.reports.result import Result, read_result
from tests.reports.make import bench_json


pytest.importorskip("matplotlib")


def result_of(folder: Path, value: dict[str, Any]) -> Result:
    path = folder / "bench.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return read_result(path)


def overlapping(texts: list[Any]) -> list[tuple[str, str]]:
    """Pairs of drawn texts that lie on each other."""
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_visible() and text.get_text()]
    return [
        (first, second)
        for i, (first, box) in enumerate(boxes)
        for second, other in boxes[i + 1 :]
        if box.shrunk(0.9, 0.9).overlaps(other.shrunk(0.9, 0.9))
    ]


@pytest.mark.parametrize("name", PICTURES)
def test_nothing_is_cut_or_drawn_over(tmp_path: Path, name: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    figure = PICTURES[name](result_of(tmp_path, bench_json(data=("zsre", "counterfact", "editeverything"))))
    FigureCanvasAgg(figure).draw()
    ticks = {
        label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in axis.get_majorticklabels()
    }
    texts = [text for text in figure.findobj(Text) if text.get_text() and text not in ticks]
    assert overlapping(texts) == []
    for text in texts:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1, text.get_text()
    for axes in figure.axes:
        if axes.get_visible():
            labels = [label for label in axes.get_yticklabels() if axes.viewLim.y0 <= label.get_position()[1]]
            assert axes.get_title(loc="left") or name == "layers"
            assert overlapping(labels) == []


def test_marks_stand_where_the_figures_say(tmp_path: Path) -> None:
    result = result_of(tmp_path, bench_json(methods=("none", "emsedit"), together=(1,)))
    (row,) = (row for row in result.cells if row.packs)
    figure = PICTURES["trade_off"](result)
    (container,) = figure.axes[0].containers
    held, right = row.metric("strangers.same"), row.metric("reliability.exact")
    assert held and held.after and right and right.after
    assert container.lines[0].get_xydata().tolist() == [[held.after.value, right.after.value]]


def test_both_kinds_of_files_can_be_written_and_are_the_same_again(tmp_path: Path) -> None:
    result = result_of(tmp_path, bench_json())
    png, svg = drawn(result, "png"), drawn(result, "svg")
    assert list(png) == list(svg) == list(PICTURES)
    assert all(data.startswith(b"\x89PNG") for data in png.values())
    assert all(data.startswith(b"<svg") for data in svg.values())
    assert drawn(result, "svg") == svg


def test_costs_of_a_resumed_pack_lack_its_seconds(tmp_path: Path) -> None:
    value = bench_json()
    resumed = value["cells"][-1]
    del resumed["seconds"]["per_edit"]
    result = result_of(tmp_path, value)
    seconds, memory, _ = PICTURES["costs"](result).axes
    assert len(seconds.lines) == len(memory.lines) - 1
    columns, lines = tables.costs(result.cells)
    shown = {line[0]: line[columns.index("s per edit")] for line in lines}
    assert [name for name, text in shown.items() if not text] == [f"{resumed['method']} x{resumed['together']}"]


def test_pictures_without_anything_in_them_are_left_out(tmp_path: Path) -> None:
    assert drawn(result_of(tmp_path, bench_json(methods=("none",))), "png") == {}


def test_matplotlib_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = result_of(tmp_path, bench_json())
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="matplotlib"):
        drawn(result, "png")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is not valid JSON"),
        (b'{"format_version": 1}', "format version 1"),
        (b'{"format_version": 2}', "the field 'settings' is missing"),
    ],
)
def test_a_file_that_is_no_bench(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "bench.json").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_result(tmp_path)
    with pytest.raises(ConfigError, match="There is no"):
        read_result(tmp_path / "elsewhere")
