"""Processes that compute together come to what one does."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hf_edit import AnyEditConfig, EditPack, EMSEditConfig, MemitConfig, UnKEConfig, edit
from hf_edit.cli.main import app
from hf_edit.edits import Edit, EditSet
from hf_edit.errors import ComputationError, HfEditWarning
from hf_edit.methods.anyedit.unke_config import UnKESettings
from hf_edit.methods.msbp.config import CalibrationConfig
from hf_edit.methods.polish.config import PolishSettings
from hf_edit.methods.training.config import TrainingConfig
from hf_edit.models.editable import EditableModel
from hf_edit.models.generation import continuations
from hf_edit.processes import Processes, alone, is_first, placed
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from hf_edit.statistics import invented
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.preserved import Preserved
from hf_edit.statistics.shards import Shard
from hf_edit.statistics.store import base_folder, obtain, obtain_corpus, obtain_shard
from tests.launching import launched
from tests.tiny import tiny_model, tiny_tokenizer


CPU = torch.device("cpu")
EDITS = EditSet(
    [
        Edit("Who wrote the play?", "Tarvello wrote the play, please!", subject="play", id="play"),
        Edit("What is the capital of Veldora?", "Port Amber.", subject="Veldora", id="capital"),
        Edit("Tell me about Mount Fuji", "The fox lives there.", subject="Mount Fuji", id="fuji"),
    ]
)
STATISTICS = StatisticsConfig(tokens=256, conversations=8, answer_tokens=4, length=16, batch=3)
CONFIGS: dict[str, Any] = {
    "anyedit": AnyEditConfig(layers=(1, 2), window=6, max_evaluations=4, statistics=STATISTICS),
    "apart": AnyEditConfig(
        backend="direct",
        together=1,
        direct=PolishSettings(training=TrainingConfig(max_steps=3), strangers=0),
        statistics=STATISTICS,
    ),
    "unke": UnKEConfig(max_evaluations=4, statistics=STATISTICS, unke=UnKESettings(steps=4)),
    "memit": MemitConfig(max_evaluations=4, prefixes=2, prefix_tokens=4, statistics=STATISTICS),
    "emsedit": EMSEditConfig(
        steps=2, at_once=2, contexts=0, calibration=CalibrationConfig(drift_weight=0), statistics=STATISTICS
    ),
}
LINEARS = slice(0, 2)


def everything(out: Path) -> None:
    """A pack by every method, statistics and a shard of them; what each process was told goes beside them."""
    os.environ["HF_EDIT_CACHE"] = str(out / "cache")
    steps = Steps()
    packs = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HfEditWarning)  # random models learn little
        for name, config in CONFIGS.items():
            packs[name] = edit(tiny_model(), tiny_tokenizer(), EDITS, config, resume_dir=out / name, progress=steps)
    view, prompts = EditableModel.of(tiny_model()), PromptFormat.of("chat", tiny_tokenizer())
    obtain_shard(view, prompts, view.linears[LINEARS], STATISTICS, 0, Silent(), Shard(1, 2))
    if is_first():
        for name, pack in packs.items():
            pack.save_pretrained(out / f"pack-{name}")
    (out / f"steps-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(steps.seen))


class Steps:
    """Counts what is told of each stage."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def stage(self, name: str, total: int) -> None:
        self.seen.append((name, total))

    def step(self, advance: int = 1, **info: float | str) -> None:
        pass


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same by one process and by two, which start with empty caches."""
    out = {count: tmp_path_factory.mktemp(f"by-{count}") for count in (1, 2)}
    launched(everything, out[2], count=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_EDIT_CACHE", "")
        everything(out[1])
    return out


@pytest.mark.parametrize("method", CONFIGS)
def test_two_processes_come_to_the_pack_of_one(runs: dict[int, Path], method: str) -> None:
    one, two = (EditPack.from_pretrained(runs[count] / f"pack-{method}") for count in (1, 2))
    assert one.deltas.keys() == two.deltas.keys()
    for name, delta in one.deltas.items():
        expected, found = delta.dense(), two.deltas[name].dense()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert one.manifest.receipt.keys() == two.manifest.receipt.keys()
    if one.source is not None:
        for ours, theirs in zip(one.source, two.source, strict=True):
            assert ours.keys() == theirs.keys()


def test_two_processes_collect_what_one_does(runs: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    view, prompts = EditableModel.of(tiny_model()), PromptFormat.of("chat", tiny_tokenizer())
    found, written = [], []
    for name in ("collect", "write_corpus"):  # they are there
        monkeypatch.setattr(f"hf_edit.statistics.store.{name}", None)
    for count in (1, 2):
        monkeypatch.setenv("HF_EDIT_CACHE", str(runs[count] / "cache"))
        written.append(obtain_corpus(view, prompts, STATISTICS, 0, Silent()))
        found.append(obtain(view, prompts, view.linears[1:3], STATISTICS, 0, Silent()))
        assert len(list(base_folder(view).glob("*/shards/1-of-2/*"))) == 2
        assert not list(base_folder(view).glob("*/unfinished/*"))
    assert torch.equal(written[0].text, written[1].text)
    assert written[0].conversations == written[1].conversations != ()
    one, two = found
    assert one.tokens == two.tokens
    for part, matrices in one.matrices.items():
        for name, matrix in matrices.items():
            scale = float(matrix.abs().max())
            torch.testing.assert_close(two.matrices[part][name], matrix, rtol=1e-5, atol=1e-6 * scale)


def test_only_the_first_tells_and_each_does_its_share(runs: dict[int, Path]) -> None:
    told = [json.loads((runs[2] / f"steps-{rank}.json").read_text()) for rank in (0, 1)]
    alone = json.loads((runs[1] / "steps-0.json").read_text())
    assert told[1] == [] and [name for name, _ in told[0]] == [name for name, _ in alone]
    ours, theirs = (dict(reversed(seen)) for seen in (told[0], alone))
    for stage in ("targets", *(f"statistics: {part}" for part in ("text", "questions", "answers", "moments"))):
        assert ours[stage] < theirs[stage]
    targets = len(list((runs[2] / "memit").iterdir()))
    assert targets == 2  # a batch for each


def asked(out: Path) -> None:
    """Questions of the same kind, and how many rows this process wrote for them."""
    rows = 0

    def counted(*args: Any) -> list[list[int]]:
        nonlocal rows
        rows += len(args[1])
        return continuations(*args)

    view, prompts = EditableModel.of(tiny_model()), PromptFormat.of("chat", tiny_tokenizer())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(invented, "continuations", counted)
        found = Preserved(view, prompts, STATISTICS, 0, Silent()).strangers(EDITS, 6)
    told = {"ids": [one.ids for one in found], "rows": rows}
    (out / f"asked-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(told))


def test_processes_share_questions_of_the_same_kind(tmp_path: Path) -> None:
    launched(asked, tmp_path)
    first, second = (json.loads((tmp_path / f"asked-{rank}.json").read_text()) for rank in (0, 1))
    asked(tmp_path)
    alone = json.loads((tmp_path / "asked-0.json").read_text())
    assert first["ids"] == second["ids"] == alone["ids"] != []
    assert first["rows"] + second["rows"] == alone["rows"] and 0 < second["rows"] < alone["rows"]


def commands(out: Path, lines: list[list[str]]) -> None:
    """Run `hf-edit` with these words, one line after the other, and note what it printed."""
    os.environ["HF_EDIT_CACHE"] = str(out / "cache")
    results = [CliRunner().invoke(app, line, catch_exceptions=False) for line in lines]
    told = [(result.exit_code, result.stdout, result.stderr) for result in results]
    (out / f"told-{os.environ['RANK']}.json").write_text(json.dumps(told))


def test_the_command_line_writes_and_prints_once(tmp_path: Path) -> None:
    base, pack, edits = (str(tmp_path / name) for name in ("base", "pack", "edits.jsonl"))
    tiny_model().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    Path(edits).write_text("".join(json.dumps(one.to_json()) + "\n" for one in EDITS))
    statistics = ["--set", "statistics.tokens=256", "--set", "statistics.conversations=2"]
    quick = ["--backend", "memit", "--set", "max_evaluations=2", "--no-answers", "--json", *statistics]
    asked = ["--set", "max_new_tokens=4", "--set", "probe_tokens=4", "--set", "strangers=1"]
    lines = [
        ["stats", "collect", "--model", base, "--tokens", "256", "--conversations", "2", "--json"],
        ["apply", "--model", base, "--edits", edits, "--out", pack, "--method", "anyedit", *quick],
        ["apply", "--model", base, "--edits", edits, "--out", pack, "--method", "nonsense", *quick],
        ["evaluate", pack, "--model", base, "--only", "reliability,strangers", *asked, "--save", "--json"],
    ]
    launched(commands, tmp_path, lines)
    first, second = (json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in (0, 1))
    assert [code for code, _, _ in first] == [code for code, _, _ in second] == [0, 0, 2, 0]
    assert "reliability.exact" in [metric["name"] for metric in json.loads(first[3][1])["metrics"]]
    assert EditPack.from_pretrained(pack).evaluation is not None
    assert len(json.loads(first[0][1])["statistics"]) == 2
    assert len(json.loads(first[1][1])["edits"]) == len(EditPack.from_pretrained(pack).edits) == 3
    assert "note: " in first[1][2] and "targets 2/2" in first[1][2] and "error: " in first[2][2]
    assert [stdout for _, stdout, _ in second] == ["", "", "", ""]
    assert [stderr for _, _, stderr in second if not stderr.startswith("error: ")] == ["", "", ""]
    assert not (tmp_path / ".pack.resume").exists()


def disagree(out: Path) -> None:
    """What the others are told when one of them fails, and what else they tell each other."""
    processes = Processes.joined(CPU)

    def compute(item: int) -> int:
        if item == 3:  # the second one's
            raise ComputationError("Item 3 is not finite.", "Leave it out.")
        return 10 * item

    try:
        processes.map(compute, range(5))
    except ComputationError as error:
        failed = str(error)
    total = torch.tensor([processes.rank + 1.0])
    processes.add_up([total])
    answers = {
        "failed": failed,
        "map": processes.map(lambda item: 2 * item, range(5)),
        "few": processes.map(str, [7]),
        "none": processes.map(str, []),
        "within": processes.map(lambda _: Processes.joined(CPU).count, range(3)),
        "once": processes.once(lambda: f"from {processes.rank}"),
        "first": processes.first(processes.rank),
        "gathered": processes.gathered(processes.rank),
        "sum": total.tolist(),
        "is_first": is_first(),
        "placed": placed(None),
    }
    processes.wait()
    (out / f"{processes.rank}.json").write_text(json.dumps(answers))


def test_what_processes_tell_each_other(tmp_path: Path) -> None:
    launched(disagree, tmp_path, count=3)
    for rank in range(3):
        answers = json.loads((tmp_path / f"{rank}.json").read_text())
        assert answers == {
            "failed": "Item 3 is not finite. Leave it out.",
            "map": [0, 2, 4, 6, 8],
            "few": ["7"],
            "none": [],
            "within": [1, 1, 1],  # no one else is at the same item
            "once": "from 0",
            "first": 0,
            "gathered": [0, 1, 2],
            "sum": [6.0],
            "is_first": rank == 0,
            "placed": "cpu" if not torch.cuda.is_available() else f"cuda:{rank}",
        }


@given(n=st.integers(0, 60), size=st.integers(1, 20), count=st.integers(1, 5))
@example(n=0, size=3, count=2)
def test_every_process_gets_as_much_as_any_other(n: int, size: int, count: int) -> None:
    batches = Processes(0, count).batches(range(n), size)
    assert [i for batch in batches for i in batch] == list(range(n))
    lengths = [len(batch) for batch in batches]
    assert all(0 < length <= size for length in lengths)
    if count == 1:
        assert lengths[:-1] == [size] * (len(lengths) - 1)
    else:
        assert len(batches) % count == 0 or set(lengths) == {1}
        assert max(lengths, default=0) - min(lengths, default=0) <= 1


def test_one_alone_pays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.all_gather_object", None)  # fails if it is called
    monkeypatch.setattr("accelerate.PartialState", None)
    alone = Processes.joined(CPU)
    assert alone == Processes(0, 1) and is_first() and placed(None) is None and placed("mps") == "mps"
    total = torch.ones(2)
    alone.add_up([total])
    alone.wait()
    assert total.tolist() == [1, 1] and alone.first(3) == alone.once(lambda: 3) == 3
    assert alone.map(str, [1, 2]) == ["1", "2"] and alone.gathered("a") == ["a"]
    with pytest.raises(ZeroDivisionError):
        alone.map(lambda item: 1 / item, [0])


@pytest.mark.parametrize("launcher", ["", "PMI_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_"])
def test_whatever_started_them(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{launcher}RANK", "1")
    assert not is_first()
    monkeypatch.setenv(f"{launcher}RANK", "0")
    assert is_first()


def test_one_of_several_may_compute_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with alone():
        assert Processes.joined(CPU) == Processes()
        assert placed(None) is None
