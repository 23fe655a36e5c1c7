"""Every example runs: on a tiny model with lowered defaults, and some of them, marked slow, on the embedded model."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_edit
from hf_edit import EditPack, EditSet, Hypernet
from hf_edit.cli.main import app
from tests.loopback_hub import REAL_CLIENT, LoopbackHub, loopback_hub  # noqa: F401
from tests.quick import quicken, save_tiny_base


EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "asking")
pytestmark = [
    REAL_CLIENT,
    pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning"),  # a tiny random model learns little
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # of PEFT
]

Example = Callable[..., None]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Example]:
    """`main` of a script by its name, as if it had been started beside the others."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)

    def main(name: str) -> Example:
        started: Example = import_module(name).main
        return started

    return main


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_base(tmp_path_factory.mktemp("examples")))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


Said = pytest.CaptureFixture[str]


@pytest.mark.usefixtures("quick")
class TestOnATinyModel:
    def test_quickstart(self, example: Callable[[str], Example], base: str) -> None:
        example("quickstart")(base, "out")
        assert EditPack.from_pretrained("out").edits.ids == ("brisa-maker", "brisa-bulb")

    def test_plain_transformers(self, example: Callable[[str], Example], base: str, capsys: Said) -> None:
        hf_edit.edit(*loaded(base), EditSet.from_jsonl(EXAMPLES / "edits.jsonl")).save_pretrained("out")
        example("plain_transformers")(base, "out", "Which company makes the Brisa lamp?")
        first, _, last = capsys.readouterr().out.splitlines()
        assert first == last

    def test_fix_a_fact(self, example: Callable[[str], Example], base: str, capsys: Said) -> None:
        example("fix_a_fact")(base, "out")
        said = capsys.readouterr().out
        assert said.count("before:") == said.count("after:") == 3
        assert EditPack.from_pretrained("out").edits.ids == ("saturn-moons",)

    def test_teach_a_document(self, example: Callable[[str], Example], base: str) -> None:
        example("teach_a_document")(base, "out")
        direct, chunks = (EditPack.from_pretrained(f"out/{method}") for method in ("direct", "chunks"))
        assert direct.edits == chunks.edits
        assert chunks.manifest.method.config["chunker"] == "sentence"

    def test_a_stream_of_edits(self, example: Callable[[str], Example], base: str, capsys: Said) -> None:
        example("a_stream_of_edits")(base, "out")
        assert len(capsys.readouterr().out.splitlines()) == 1 + 2 + 3
        facts = EditSet.from_jsonl(EXAMPLES / "facts.jsonl")
        days = [EditPack.from_pretrained(f"out/day-{day}").edits.ids for day in (1, 2, 3)]
        assert [id for day in days for id in day] == list(facts.ids)

    def test_combine_two_teams(self, example: Callable[[str], Example], base: str, capsys: Said) -> None:
        example("combine_two_teams")(base, "out")
        said = capsys.readouterr().out
        assert "design/colour and support/shade" in said
        assert set(EditPack.from_pretrained("out").edits.ids) == {"maker", "bulb", "shade"}

    def test_take_one_back(self, example: Callable[[str], Example], base: str, capsys: Said) -> None:
        example("take_one_back")(base, "out")
        assert "brisa-bulb is taken back; left: brisa-maker" in capsys.readouterr().out
        assert EditPack.from_pretrained("out").manifest.method.name == "revert"

    def test_merge_and_undo(self, example: Callable[[str], Example], base: str, capsys: Said) -> None:
        example("merge_and_undo")(base, "out")
        said = capsys.readouterr().out
        assert "every bit as in the base: True" in said and "merged: 0 tensors" not in said

    def test_push_and_pull(
        self,
        example: Callable[[str], Example],
        hub: LoopbackHub,
        base: str,
        capsys: Said,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # made once, for the Hub of that time
        hub.upload("org/base", Path(base))
        example("push_and_pull")("org/base", "me/lamp")
        assert f"commit {hub.repositories['me/lamp'].tags['v1']}, teaches maker" in capsys.readouterr().out

    def test_train_a_hypernetwork(self, example: Callable[[str], Example], base: str, capsys: Said) -> None:
        example("train_a_hypernetwork")(base, "out")
        assert "4 new facts taught" in capsys.readouterr().out
        assert Hypernet.from_pretrained("out/net").manifest.method == "emsedit"
        assert len(EditPack.from_pretrained("out/pack").edits) == 4

    def test_with_pipeline(self, example: Callable[[str], Example], base: str, capsys: Said) -> None:
        example("with_pipeline")(base, "out")
        labels = r"^(?:base|with the pack attached|detached|a pipeline made of the pack):"
        _, first, attached, detached, of_the_pack = (
            said.strip() for said in re.split(labels, capsys.readouterr().out, flags=re.MULTILINE)
        )
        assert first == detached and attached == of_the_pack

    def test_with_trainer(self, example: Callable[[str], Example], base: str, capsys: Said) -> None:
        example("with_trainer")(base, "out")
        assert "of the pack 0" in capsys.readouterr().out
        assert Path("out/style/adapter_model.safetensors").is_file()
        assert not [path for path in Path("out").rglob("*.safetensors") if path.parent.name != "style"]

    def test_with_lm_eval(
        self, example: Callable[[str], Example], base: str, capsys: Said, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its library is heavy: a stand-in looks at what it would be given."""
        adapters: list[int] = []

        def evaluate(*, model: Any, tasks: list[str], limit: int, log_samples: bool) -> dict[str, Any]:
            del log_samples
            adapters.append(len(getattr(model.pretrained, "peft_config", {})))
            return {"results": {task: {"acc,none": limit / 100, "acc_stderr,none": 0.1} for task in tasks}}

        harness, models = ModuleType("lm_eval"), ModuleType("lm_eval.models.huggingface")
        vars(harness).update(simple_evaluate=evaluate)
        vars(models).update(HFLM=SimpleNamespace)
        for module in (harness, ModuleType("lm_eval.models"), models):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        hf_edit.edit(*loaded(base), EditSet.from_jsonl(EXAMPLES / "edits.jsonl")).save_pretrained("out")
        example("with_lm_eval")(base, "out", "one,two", "50")
        assert adapters == [0, 1]
        assert capsys.readouterr().out == "one acc,none: 0.500 -> 0.500\ntwo acc,none: 0.500 -> 0.500\n"

    def test_the_notebook(self, example: Callable[[str], Example], base: str, monkeypatch: pytest.MonkeyPatch) -> None:
        del example  # for its folder
        monkeypatch.setenv("MODEL", base)
        namespace: dict[str, Any] = {}
        for number, cell in enumerate(notebook()["cells"]):
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"cell {number}", "exec"), namespace)
        assert namespace["same"] is True


def loaded(base: str) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)


def notebook() -> Any:
    return json.loads((EXAMPLES / "walkthrough.ipynb").read_text(encoding="utf-8"))


def test_every_script_has_a_test() -> None:
    tested = {name.removeprefix("test_") for name in vars(TestOnATinyModel)}
    assert [name for name in SCRIPTS if name not in tested] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_small_and_say_how_they_are_used(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    described = ast.get_docstring(ast.parse(text)) or ""
    assert f"python {name}.py MODEL" in described or f"python {name}.py BASE" in described


@pytest.mark.slow  # a process that imports torch and transformers
def test_a_script_without_a_model_tells_its_usage() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "fix_a_fact.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "python fix_a_fact.py MODEL" in done.stderr and "Traceback" not in done.stderr


def test_the_notebook_is_a_notebook() -> None:
    """nbformat 4.5: what Jupyter asks for, and no outputs, which would be somebody's."""
    document = notebook()
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    assert document["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in document["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in document["cells"]:
        assert cell["metadata"] == {} and all(isinstance(line, str) for line in cell["source"])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


JOBS = {
    "slurm.sh": {"MODEL": "org/base", "EDITS": "zsre.json", "FACTS": "my facts.jsonl", "SLURM_GPUS_ON_NODE": "2"},
    "hf_jobs.sh": {
        "MODEL": "org/base",
        "EDITS": "me/edits",
        "REPO": "me/pack",
        "PACKAGE": "git+https://example.org/it",
    },
}
PRINTED = {
    "slurm.sh": [
        "srun --nodes 1 --ntasks-per-node 1 bash -c ",
        "hf-edit apply --model org/base --edits my\\ facts.jsonl",
        "hf-edit verify",
    ],
    "hf_jobs.sh": ["hf jobs run --flavor a100-large"],
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("name", JOBS)
def test_jobs_print_what_they_would_run(name: str) -> None:
    script = EXAMPLES / "jobs" / name
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    done = bash(script, {**JOBS[name], "DRY_RUN": "1"})
    lines = done.stdout.strip().splitlines()
    assert done.returncode == 0 and len(lines) == len(PRINTED[name])
    assert all(line.startswith(start) for line, start in zip(lines, PRINTED[name], strict=True))
    if name == "slurm.sh":
        assert "accelerate" in lines[0] and lines[0].partition(" hf-edit ")[0].endswith(" 2 1 localhost")
    missing = bash(script, {"DRY_RUN": "1"})
    assert missing.returncode != 0 and "MODEL: the base" in missing.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_command_lines_in_jobs_can_be_parsed() -> None:
    """What the jobs run is known to this version of the command line."""
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    printed = [
        line
        for name in JOBS
        for line in bash(EXAMPLES / "jobs" / name, {**JOBS[name], "DRY_RUN": "1"}).stdout.splitlines()
    ]
    calls = [shlex.split(line.partition("hf-edit ")[2]) for line in printed if "jobs run" not in line]
    assert [verb for verb, *_ in calls] == ["train", "apply", "verify"]
    for verb, *arguments in calls:
        verbs[verb].make_context(verb, arguments)


def bash(script: Path, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **settings}
    return subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
class TestOnTheEmbeddedModel:
    def test_fix_a_fact(
        self, example: Callable[[str], Example], embedded_base: Path, tmp_path: Path, capsys: Said
    ) -> None:
        example("fix_a_fact")(str(embedded_base), str(tmp_path / "out"))
        taught = capsys.readouterr().out.splitlines()
        assert taught[2] == "  after:  As of March 2025, Saturn has 274 confirmed moons."
        assert taught[1].removeprefix("  before: ") != taught[2].removeprefix("  after:  ")

    def test_merge_and_undo(
        self, example: Callable[[str], Example], embedded_base: Path, tmp_path: Path, capsys: Said
    ) -> None:
        example("merge_and_undo")(str(embedded_base), str(tmp_path / "out"))
        assert "every bit as in the base: True" in capsys.readouterr().out
