"""A whole bench: its figures, what it refuses, and what a killed one leaves behind."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft.tuners.tuners_utils import BaseTunerLayer

from hf_edit.bench import cells
from hf_edit.bench.config import BenchConfig
from hf_edit.bench.run import run_bench
from hf_edit.errors import ConfigError, HfEditWarning, PackError
from hf_edit.evaluation import subject
from hf_edit.evaluation.recall import Recall
from hf_edit.packs.evaluation import Evaluation
from hf_edit.packs.pack import EditPack
from hf_edit.reports.result import read_result
from tests.bench.running import CONFIG, NAMES, run, write_data
from tests.launching import launched
from tests.tiny import tiny_model, tiny_tokenizer


ROOT = Path(__file__).parents[2]
TIMES = ("seconds", "peak_memory")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def counted(asked: list[Any]) -> Callable[..., Any]:
    """`continuations`, which writes down what the base is asked."""
    continuations = subject.continuations

    def continued(model: Any, rows: Any, stop_ids: Any, limit: int) -> Any:
        if not any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            asked.append((rows, limit))
        return continuations(model, rows, stop_ids, limit)

    return continued


@pytest.fixture(scope="module")
def asked() -> list[Any]:
    """What the base was asked in `out`."""
    return []


@pytest.fixture(scope="module")
def out(data: Path, asked: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_EDIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(subject, "continuations", counted(asked))
        run(data, folder, keep_packs=True)
    return folder


@pytest.fixture
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_EDIT_CACHE", str(tmp_path / "cache"))


def timeless(value: Any) -> Any:
    """JSON without what depends on the clock and the machine's load."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_cell_is_measured_or_says_why_not(out: Path) -> None:
    result = read(out / "bench.json")
    assert [cell["name"] for cell in result["cells"]] == [
        "edits--none",
        "edits--in-context",
        "edits--finetune--by-2--seed-0",
        "edits--finetune--by-4--seed-0",
        "edits--emsedit--by-2--seed-0",
        "edits--emsedit--by-4--seed-0",
    ]
    assert {cell["name"]: "99" in cell["refused"] for cell in result["refused"]} == {
        "edits--too-deep--by-2--seed-0": True,
        "edits--too-deep--by-4--seed-0": True,
    }
    assert result["edits"]["edits"]["ids"] == list(NAMES)
    assert result["base"]["layers"] == 4


def test_a_cell_says_what_was_found_and_what_it_cost(out: Path) -> None:
    cells = {cell["name"]: cell for cell in read(out / "bench.json")["cells"]}
    assert {metric["name"] for metric in cells["edits--none"]["metrics"]} >= {"reliability.exact", "perplexity.text"}
    assert all(metric["after"] is None for metric in cells["edits--none"]["metrics"])
    two = cells["edits--finetune--by-2--seed-0"]
    assert two["packs"]["count"] == 2
    assert all(module["rank"] == 2 and 0 < module["relative_norm"] < 1 for module in two["packs"]["modules"])
    assert two["seconds"]["per_edit"] > 0
    assert two["peak_memory"]["process"] > 10**7
    exact = next(metric for metric in two["metrics"] if metric["name"] == "reliability.exact")
    assert exact["after"]["n"] == exact["before"]["n"] == len(NAMES)
    assert {example["kind"] for example in two["examples"]} == {"prompt", "locality"}


def test_the_summary_repeats_the_figures_of_the_cells(out: Path) -> None:
    for cell in read(out / "bench.json")["cells"]:
        evaluation = Evaluation.from_json(read(out / "cells" / f"{cell['name']}.json")["evaluation"])
        assert len(cell["metrics"]) == len(evaluation.metrics) > 0
        for told, metric in zip(cell["metrics"], evaluation.metrics, strict=True):
            for look in ("before", "after"):
                figure = getattr(metric, look)
                assert (told[look] or {}).get("value") == (figure.value if figure else None)


def test_the_base_is_asked_nothing_twice_and_figures_are_as_if_it_were(
    data: Path, out: Path, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_EDIT_CACHE", str(tmp_path / "cache"))
    remembering = list(asked)
    monkeypatch.setattr(Recall, "once", lambda self, key, ask: ask())
    monkeypatch.setattr(Recall, "tensors_once", lambda self, key, ask: ask())
    monkeypatch.setattr(subject, "continuations", counted(asked))
    run(data, tmp_path / "out")
    asking = asked[len(remembering) :]
    assert len(remembering) == len(set(remembering)) < len(asking)
    assert set(remembering) == set(asking)
    for path in ["bench.json", *(f"cells/{path.name}" for path in (tmp_path / "out" / "cells").iterdir())]:
        assert timeless(read(out / path)) == timeless(read(tmp_path / "out" / path))
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "cells", "packs"]


def test_a_pack_that_has_nothing_to_ask_refuses_no_cell(data: Path, tmp_path: Path, isolated: None) -> None:
    rows = [json.loads(line) for line in (data / "edits.jsonl").read_text("utf-8").splitlines()]
    rows[1]["portability"] = [{"prompt": "And then?", "answer": "Yes."}]
    rows[3]["target"] = "It is three, as far as anybody can tell."
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    evaluate = {**CONFIG["evaluate"], "evaluators": ["reliability", "portability", "unrelated"]}
    del evaluate["max_new_tokens"]
    methods = [CONFIG["methods"][0], CONFIG["methods"][2]]
    config = {"methods": methods, "data": [{**CONFIG["data"][0], "together": [1]}], "evaluate": evaluate}
    result = run(tmp_path, tmp_path / "out", config=config)
    none, tuned = result["cells"]
    assert not result["refused"]
    for cell in (none, tuned):
        counts = {metric["name"]: (metric["after"] or metric["before"])["n"] for metric in cell["metrics"]}
        assert (counts["reliability.exact"], counts["portability.right"]) == (4, 1)
    assert none["protocol"]["max_new_tokens"] == tuned["protocol"]["max_new_tokens"] == 64


def test_kept_packs_carry_their_figures_and_a_card(out: Path) -> None:
    pack = EditPack.from_pretrained(out / "packs" / "edits--emsedit--by-4--seed-0")
    cell = read(out / "cells" / "edits--emsedit--by-4--seed-0.json")
    assert pack.evaluation is not None
    assert pack.evaluation.metrics == Evaluation.from_json(cell["evaluation"]).metrics
    assert "## Measured" in (out / "packs" / "edits--emsedit--by-4--seed-0" / "README.md").read_text("utf-8")
    assert EditPack.from_pretrained(out / "packs" / "edits--emsedit--by-2--seed-0" / "0001").edits.ids == NAMES[2:]


def test_a_killed_bench_goes_on_to_the_same_figures(
    data: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_EDIT_CACHE", str(tmp_path / "cache"))
    again, fatal = tmp_path / "again", "edits--emsedit--by-2--seed-0"
    command = [sys.executable, "-m", "tests.bench.running", str(data), str(again), fatal]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    finished = {path.name: path.read_bytes() for path in (again / "cells").glob("*.json")}
    assert len(finished) == 4
    assert [path.name for path in (again / "cells" / f".{fatal}.unfinished").glob("*.json")] == ["0000.json"]

    run(data, again)
    assert {name: (again / "cells" / name).read_bytes() for name in finished} == finished
    assert timeless(read(again / "bench.json")) == timeless(read(out / "bench.json"))
    assert sorted(path.name for path in (again / "cells").iterdir()) == sorted(
        path.name for path in (out / "cells").iterdir() if path.suffix == ".json"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"evaluate": {**CONFIG["evaluate"], "probe_tokens": 5}}, "edits--none.json was measured with other settings"),
        ({"evaluate": {"evaluators": ["success"]}}, "Nothing to ask for the evaluator 'success'"),
        ({"text": "nowhere.txt"}, "There is no file nowhere.txt"),
        ({"data": [{**CONFIG["data"][0], "records": "90:99"}]}, "No record of '90:99' is among the 4 of edits"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is(
    data: Path, out: Path, change: dict[str, Any], said: str
) -> None:
    config = BenchConfig.from_mapping({**CONFIG, **change})
    before = sorted((out / "cells").iterdir())
    with pytest.raises(ConfigError, match=said):
        run_bench(tiny_model(), tiny_tokenizer(), config, out, data_folder=data)
    assert sorted((out / "cells").iterdir()) == before


def part(data: str, *methods: Any, **settings: Any) -> dict[str, Any]:
    """A bench of these methods alone on a data set of that name."""
    return {**CONFIG, "methods": list(methods), "data": [{**CONFIG["data"][0], "name": data, **settings}]}


def test_one_folder_gathers_what_several_commands_measure(data: Path, tmp_path: Path, isolated: None) -> None:
    out, deep = tmp_path / "out", CONFIG["methods"][-1]
    run(data, out, config=part("one", "none", deep, records="0:2"))
    result = run(data, out, config=part("two", "none", "retrieval"))
    assert result == read(out / "bench.json")
    assert [cell["name"] for cell in result["cells"]] == ["one--none", "two--none", "two--retrieval"]
    assert [cell["name"] for cell in result["refused"]] == ["one--too-deep--by-2--seed-0"]
    assert {name: len(edits["ids"]) for name, edits in result["edits"].items()} == {"one": 2, "two": 4}
    assert [row["name"] for row in result["settings"]["data"]] == ["one", "two"]
    assert [row["label"] for row in result["settings"]["methods"]] == ["none", "too-deep", "retrieval"]
    assert list(read_result(out).by_data()) == ["one", "two"]

    (out / "cells" / "two--none.json").unlink()
    result = run(data, out, config=part("one", "none", records="0:2"))
    assert [cell["name"] for cell in result["cells"]] == ["two--retrieval", "one--none"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({**part("two", "none"), "evaluate": {**CONFIG["evaluate"], "probe_tokens": 5}}, "table evaluate"),
        ({**part("two", "none"), "text": "edits.jsonl"}, "text"),
        (part("one", "retrieval", records="1:2"), "one"),
        (part("one", "retrieval", records="0:2", format="qa"), "one"),
        (part("two", {"method": "retrieval", "label": "none"}), "none"),
    ],
)
def test_what_does_not_belong_into_one_table_is_refused_before_anything_is_measured(
    data: Path, tmp_path: Path, isolated: None, other: dict[str, Any], said: str
) -> None:
    run(data, tmp_path, config=part("one", "none", records="0:2"))
    before = (tmp_path / "bench.json").read_bytes()
    with pytest.raises(ConfigError, match=rf"bench\.json holds cells of another {said}\."):
        run(data, tmp_path, config=other)
    assert [path.name for path in (tmp_path / "cells").iterdir()] == ["one--none.json"]
    assert (tmp_path / "bench.json").read_bytes() == before


def test_a_pack_that_a_resumed_run_finished_has_no_seconds(data: Path, tmp_path: Path, isolated: None) -> None:
    config = {**part("edits", CONFIG["methods"][2]), "data": [{**CONFIG["data"][0], "together": [2]}]}
    begun = tmp_path / "cells" / ".edits--finetune--by-2--seed-0.unfinished" / "0001.resume"
    begun.mkdir(parents=True)
    (begun / "of an earlier run").touch()
    (cell,) = run(data, tmp_path, config=config)["cells"]
    kept = read(tmp_path / "cells" / f"{cell['name']}.json")
    assert kept["seconds"][1] == {}
    assert cell["seconds"]["per_edit"] == pytest.approx(
        sum(value for stage, value in kept["seconds"][0].items() if stage != "statistics") / 2, abs=1e-4
    )


def test_packs_that_an_earlier_run_did_not_keep_are_told(data: Path, tmp_path: Path, isolated: None) -> None:
    config = {**part("edits", "none", CONFIG["methods"][2]), "data": [{**CONFIG["data"][0], "together": [2]}]}
    run(data, tmp_path, config=config)
    with pytest.warns(HfEditWarning, match=r"not computed again: edits--finetune--by-2--seed-0\. Delete"):
        run(data, tmp_path, keep_packs=True, config=config)
    cell = tmp_path / "cells" / "edits--finetune--by-2--seed-0.json"
    cell.unlink()
    run(data, tmp_path, keep_packs=True, config=config)
    run(data, tmp_path, keep_packs=True, config=config)
    shutil.rmtree(tmp_path / "packs" / cell.stem / "0001")
    with pytest.warns(HfEditWarning, match="not computed again"):
        run(data, tmp_path, keep_packs=True, config=config)


def test_a_cell_that_cannot_be_summed_up_is_not_kept(
    data: Path, tmp_path: Path, isolated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(found: list[Evaluation], *_: Any) -> Evaluation:
        return dataclasses.replace(found[0], metrics=found[0].metrics * 2)

    with monkeypatch.context() as patch:
        patch.setattr("hf_edit.bench.cells.pooled", twice)
        (refused,) = run(data, tmp_path, config=part("edits", "none"))["refused"]
    assert "a metric stands twice" in refused["refused"]
    assert [cell["name"] for cell in run(data, tmp_path, config=part("edits", "none"))["cells"]] == ["edits--none"]


def killed_after_one_pack(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A bench of two packs that ended behind the first; its settings."""
    config = part("edits", CONFIG["methods"][2], together=[2])
    with monkeypatch.context() as patch:
        kept = cells.kept

        def killing(path: Path, value: dict[str, Any]) -> dict[str, Any]:
            if path.name == "0001.json":
                raise KeyboardInterrupt
            return kept(path, value)

        patch.setattr(cells, "kept", killing)
        with pytest.raises(KeyboardInterrupt):
            run(data, out, config=config)
    return config


def test_a_begun_cell_of_other_settings_is_told_before_anything_is_measured(
    data: Path, tmp_path: Path, isolated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = killed_after_one_pack(data, tmp_path, monkeypatch)
    other = {**config, "evaluate": {**config["evaluate"], "probe_tokens": 5}}
    with pytest.raises(ConfigError, match=r"0000\.json was measured with other settings"):
        run(data, tmp_path, config=other)
    assert not run(data, tmp_path, config=config)["refused"]


def test_a_bench_begun_on_another_device_goes_on(
    data: Path, tmp_path: Path, isolated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = killed_after_one_pack(data, tmp_path, monkeypatch)
    path = tmp_path / "cells" / ".edits--finetune--by-2--seed-0.unfinished" / "0000.json"
    begun = read(path)
    begun["peak_memory"]["cuda"] = 10**12
    path.write_text(json.dumps(begun), encoding="utf-8")
    (cell,) = run(data, tmp_path, config=config)["cells"]
    kept = read(tmp_path / "cells" / f"{cell['name']}.json")
    assert kept["peak_memory"]["cuda"] == 10**12 and len(kept["peak_memory"]) == 2


def test_what_the_disk_refuses_ends_the_bench(
    data: Path, tmp_path: Path, isolated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cells, "replacing", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        run(data, tmp_path, config=part("edits", "none"))


def test_a_pack_without_a_place_is_told_before_anything_is_measured(
    data: Path, tmp_path: Path, isolated: None
) -> None:
    foreign = tmp_path / "packs" / "edits--finetune--by-4--seed-0" / "diary.txt"
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    config = part("edits", "none", CONFIG["methods"][2], together=[4])
    with pytest.raises(PackError, match=r"holds what does not belong there: diary\.txt"):
        run(data, tmp_path, keep_packs=True, config=config)
    assert not (tmp_path / "cells").exists()


def test_another_chat_template_is_another_bench(data: Path, tmp_path: Path, isolated: None) -> None:
    config = BenchConfig.from_mapping(part("edits", "none", format="chat"))
    tokenizer = tiny_tokenizer()
    run_bench(tiny_model(), tokenizer, config, tmp_path, data_folder=data)
    tokenizer.chat_template = tokenizer.chat_template.replace("{%", " {%", 1)
    with pytest.raises(ConfigError, match=r"edits--none\.json was measured with other settings"):
        run_bench(tiny_model(), tokenizer, config, tmp_path, data_folder=data)


def run_shared(data: Path, out: Path) -> None:
    """In each of several processes."""
    os.environ["HF_EDIT_CACHE"] = str(out / "cache")
    result = run(data, out, config=part("edits", "none", "in-context", CONFIG["methods"][-1]))
    (out / f"told-{os.environ['RANK']}.json").write_text(json.dumps(result), encoding="utf-8")


def test_several_processes_share_the_cells(data: Path, out: Path, tmp_path: Path) -> None:
    launched(run_shared, data, tmp_path)
    result = read(tmp_path / "bench.json")
    assert read(tmp_path / "told-0.json") == read(tmp_path / "told-1.json") == result
    assert {cell["environment"]["hardware"]["processes"] for cell in result["cells"]} == {2}
    alone = {cell["name"]: cell for cell in read(out / "bench.json")["cells"]}
    assert len(result["cells"]) == 2 and len(result["refused"]) == 2
    for cell in result["cells"]:
        assert cell["metrics"] == alone[cell["name"]]["metrics"]
