"""The page: whole, of one piece, with the very figures, and with nothing that strangers wrote taken for markup."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hf_edit.packs.card import shown_figure
from hf_edit.reports.page import page
from hf_edit.reports.pictures import drawn
from hf_edit.reports.result import Result, read_result
from tests.reports.make import HOSTILE, bench_json


pytest.importorskip("matplotlib")
VOID = {"meta", "br", "img", "hr", "link", "input"}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "bench.json").write_text(json.dumps(bench_json(data=("zsre", "unke"))), encoding="utf-8")
    return read_result(folder)


@pytest.fixture(scope="module")
def html(result: Result) -> str:
    return page(result, {name: svg.decode() for name, svg in drawn(result, "svg").items()})


class Reader(HTMLParser):
    """Open tags, cells of tables, ids, and what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.tables: list[list[list[str]]] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.fetched += [
            value or ""
            for name, value in attrs
            if name.split(":")[-1] in ("src", "href") and not str(value).startswith("#")
        ]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def reader(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader


def test_all_tags_are_closed_and_nothing_is_fetched(html: str, reader: Reader) -> None:
    assert reader.open == []
    assert reader.fetched == []
    assert not re.search(r"@import|url\((?!#)", html)
    assert {"svg", "table", "details"} <= reader.seen


def test_ids_are_unique_over_all_pictures(reader: Reader) -> None:
    assert len(reader.ids) == len(set(reader.ids)) > 10


def test_what_strangers_wrote_is_text(html: str, reader: Reader) -> None:
    assert "script" not in reader.seen
    assert "\u202e" not in html
    answers = [table for table in reader.tables if table[0][:2] == ["asked", "question"]]
    shown = HOSTILE.replace("\u202e", "\\u202e")
    assert answers[0][1] == ["prompt", shown, shown, shown, ""]  # of the unedited model


def figures(result: Result) -> Iterator[list[str]]:
    for row in result.cells:
        for metric in row.metrics:
            yield [metric.name, shown_figure(metric.before), shown_figure(metric.after), str(metric.figure.n)]


def test_the_figures_are_those_of_the_file(result: Result, reader: Reader) -> None:
    tables = [table for table in reader.tables if table[0][:2] == ["metric", "before"]]
    assert [line[:4] for table in tables for line in table[1:]] == list(figures(result))
    taught = next(table for table in reader.tables if table[0][:2] == ["method", "word for word"])
    for line, row in zip(taught[1:], result.by_data()["zsre"], strict=True):
        metric: Any = row.metric("reliability.exact")
        assert line[:2] == [row.label, shown_figure(metric.figure)]


def browser() -> str:
    """A Chromium on this machine."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium on the path")
    return found


def test_it_looks_right_in_a_browser(html: str, tmp_path: Path) -> None:
    sync = pytest.importorskip("playwright.sync_api")
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    with sync.sync_playwright() as playwright:
        sandbox = os.getuid() != 0  # which Chromium has none of for root
        opened = playwright.chromium.launch(executable_path=browser(), chromium_sandbox=sandbox).new_page()
        wrong: list[str] = []
        opened.on("console", lambda message: wrong.append(message.text))
        opened.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith("file:") else None)
        opened.goto(f"file://{tmp_path / 'page.html'}")
        for width in (1200, 480):
            opened.set_viewport_size({"width": width, "height": 900})
            assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            boxes = [svg.bounding_box() for svg in opened.query_selector_all("figure svg")]
            assert len(boxes) == 5 and all(box and box["width"] > 300 and box["height"] > 100 for box in boxes)
        opened.click("details summary")
        assert opened.evaluate("document.querySelector('details').open")
        picture = tmp_path / "page.png"
        opened.screenshot(path=picture, full_page=True)
        assert picture.stat().st_size > 10_000
        assert wrong == []
