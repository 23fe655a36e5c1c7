from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command, failed
from tests.reports.make import HOSTILE, bench_json


EDITS = [
    {"prompt": "Who made the lamp?", "target": "Tarvello."},
    {"prompt": "What is it?", "target": "A lamp."},
    {"prompt": "Where is it?", "target": "Here."},
]


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    path = tmp_path / "edits.jsonl"
    path.write_text("".join(json.dumps(edit) + "\n" for edit in EDITS), encoding="utf-8")
    return path


def test_the_simple_case_needs_no_file(hf_edit: Command, base: Path, edits: Path, tmp_path: Path) -> None:
    options = ("--methods", "none,retrieval", "--records", "0:2", "--only", "reliability", "--format", "plain")
    common = ("bench", "--model", base, "--out", tmp_path / "out", "--data", f"jsonl={edits}", *options)
    result = json.loads(hf_edit(*common, "--json").stdout)
    assert [cell["name"] for cell in result["cells"]] == ["edits--none", "edits--retrieval"]
    assert len(result["edits"]["edits"]["ids"]) == 2
    assert result["settings"]["data"][0]["file"] == "edits.jsonl"
    assert str(tmp_path) not in (tmp_path / "out" / "bench.json").read_text("utf-8")
    assert "what was taught" in hf_edit(*common).stdout


def test_options_take_precedence_over_the_file(hf_edit: Command, base: Path, edits: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.toml"
    file.write_text('methods = ["none"]\n[evaluate]\nevaluators = ["reliability"]\n[[data]]\nfile = "edits.jsonl"\n')
    result = hf_edit(
        "bench",
        file,
        "--model",
        base,
        "--out",
        tmp_path / "out",
        "--data-folder",
        tmp_path,
        "--records",
        "1",
        "--json",
    )
    assert len(json.loads(result.stdout)["edits"]["edits"]["ids"]) == 1


def test_rows_and_data_of_the_file_are_chosen_by_name(
    hf_edit: Command, base: Path, edits: Path, tmp_path: Path
) -> None:
    file = tmp_path / "bench.toml"
    file.write_text(
        'methods = ["none", { method = "retrieval", label = "reads" }, { method = "in-context", label = "told" }]\n'
        '[evaluate]\nevaluators = ["reliability"]\n'
        f'[[data]]\nname = "one"\nfile = "{edits}"\nrecords = "0:2"\nformat = "plain"\n'
        '[[data]]\nname = "two"\nfile = "nowhere.jsonl"\n'
    )
    common = ("bench", file, "--model", base, "--out", tmp_path / "out", "--json")
    result = json.loads(hf_edit(*common, "--data", "one", "--methods", "reads,none").stdout)
    assert [cell["name"] for cell in result["cells"]] == ["one--reads", "one--none"]
    assert len(result["edits"]["one"]["ids"]) == 2
    failed(hf_edit(*common, "--data", "three"), "The file's own: one, two")


def test_rows_without_a_name_are_chosen_by_the_one_that_they_get(
    hf_edit: Command, base: Path, edits: Path, tmp_path: Path
) -> None:
    file = tmp_path / "bench.toml"
    file.write_text(
        'methods = ["none", { method = "emsedit", settings = { layers = [99] } }]\n'
        '[evaluate]\nevaluators = ["reliability"]\n'
        f'[[data]]\nfile = "{edits}"\nformat = "plain"\n[[data]]\nfile = "nowhere.jsonl"\n'
    )
    common = ("bench", file, "--model", base, "--out", tmp_path / "out", "--json")
    result = json.loads(hf_edit(*common, "--data", "edits", "--methods", "emsedit").stdout)
    assert result["settings"]["methods"][0]["settings"] == {"layers": [99]}
    assert [cell["name"] for cell in result["refused"]] == ["edits--emsedit--by-3--seed-0"]
    file.write_text(file.read_text().replace('"none"', '{ method = "emsedit" }'))
    failed(hf_edit(*common, "--data", "edits", "--methods", "emsedit"), "'emsedit' twice", "label")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "names no data"),
        (("--data", "edits.jsonl"), "names no file"),
        (("--data", "jsonl=none.jsonl"), "has no methods"),
        (("--data", "jsonl=none.jsonl", "--methods", "none", "--together", "1,x"), "no whole numbers"),
        (("--data", "jsonl=none.jsonl", "--methods", "none"), "There is no file none.jsonl"),
    ],
)
def test_mistakes(hf_edit: Command, base: Path, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    failed(hf_edit("bench", "--model", base, "--out", tmp_path / "out", *options), said)


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    folder = tmp_path / "bench"
    folder.mkdir()
    (folder / "bench.json").write_text(json.dumps(bench_json()), encoding="utf-8")
    return folder


def test_a_report_on_the_terminal_shows_the_figures_and_steers_nothing(hf_edit: Command, bench: Path) -> None:
    shown = hf_edit("report", bench).stdout
    told = bench_json()["cells"][1]
    exact = next(metric for metric in told["metrics"] if metric["name"] == "reliability.exact")
    assert f"{exact['after']['value']:.3g}" in shown
    assert "Not measured" in shown and "\u202e" not in shown


def test_a_report_as_json(hf_edit: Command, bench: Path) -> None:
    document = json.loads(hf_edit("report", bench, "--json").stdout)
    assert [row["name"] for row in document["cells"]] == [cell["name"] for cell in bench_json()["cells"]]


def test_a_report_as_a_page_and_pictures(hf_edit: Command, bench: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    png = tmp_path / "png"
    png.mkdir()
    (png / "trade_off.png").write_bytes(b"of an earlier bench")
    (png / "mine.png").write_bytes(b"mine")
    result = hf_edit("report", bench, "--html", tmp_path / "page.html", "--png", png)
    assert result.exit_code == 0
    assert (tmp_path / "page.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    assert HOSTILE not in (tmp_path / "page.html").read_text("utf-8")
    assert len(list(png.iterdir())) == 6 and (png / "mine.png").read_bytes() == b"mine"
    failed(hf_edit("report", bench, "--png", tmp_path / "page.html"), "is a file, no folder")


def test_a_report_of_nothing(hf_edit: Command, tmp_path: Path) -> None:
    failed(hf_edit("report", tmp_path / "none"), "There is no")
