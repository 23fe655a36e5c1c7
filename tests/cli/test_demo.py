"""`hf-edit demo` and the script that opens the pack without hf_edit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import hf_edit.cli.demo.command as command
import hf_edit.models.loading as loading
from hf_edit.cli.apply import Applied
from hf_edit.edits import Edit, EditSet
from hf_edit.packs.pack import EditPack
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta
from tests.cli.conftest import Command
from tests.tiny import VOCAB, tiny_model, tiny_tokenizer


QUESTION = "Who made the lamp?"
SCRIPT = Path(command.__file__).with_name("open_pack.py")


def brief_model() -> PreTrainedModel:
    """A tiny model that soon stops: every eighth token ends its answers."""
    model = tiny_model()
    model.generation_config.eos_token_id = list(range(0, VOCAB, 8))
    return model


@pytest.fixture(scope="module")
def brief_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("brief") / "base"
    brief_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def own_answer(question: str) -> str:
    model, tokenizer = brief_model(), tiny_tokenizer()
    ids = torch.tensor([PromptFormat.of("chat", tokenizer).prompt_ids(question)])
    answer = model.generate(ids, do_sample=False, max_new_tokens=200)[0, ids.shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True).strip()


def make_pack(path: Path, size: float) -> EditPack:
    """A pack that teaches the base's own answer: given exactly if a random delta of this size changes nothing."""
    edit = Edit(QUESTION, own_answer(QUESTION), paraphrases=["The lamp?"], locality=[{"prompt": "What is tea?"}])
    generator = torch.Generator().manual_seed(0)
    delta = LowRankDelta(size * torch.randn(32, 4, generator=generator), torch.randn(4, 56, generator=generator))
    pack = EditPack.build(
        tiny_model(),
        deltas={"model.layers.2.mlp.down_proj": delta},
        edits=EditSet([edit]),
        source=None,
        method="anyedit",
        config={},
        seed=0,
        prompt_format=PromptFormat.of("chat", tiny_tokenizer()),
        receipt={},
    )
    pack.save_pretrained(path)
    return pack


def open_pack(base: Path, pack: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(base), str(pack)], capture_output=True, text=True, check=False
    )


def test_opening_a_pack_that_holds_what_it_promises(brief_base: Path, tmp_path: Path) -> None:
    make_pack(tmp_path / "pack", size=1e-7)
    done = open_pack(brief_base, tmp_path / "pack")
    assert done.returncode == 0, done.stderr
    for line in (
        f"[taught] {QUESTION}",
        "[reworded] The lamp?",
        "[unrelated] What is tea?",
        "taught, answered exactly:      1 of 1",
        "unrelated, answer unchanged:   1 of 1",
        "adapter disabled, base back:   yes",
        "hf_edit imported here:         no",
    ):
        assert line in done.stdout


def test_opening_a_pack_that_does_not(brief_base: Path, tmp_path: Path) -> None:
    make_pack(tmp_path / "pack", size=1.0)
    done = open_pack(brief_base, tmp_path / "pack")
    assert done.returncode == 1
    assert "taught, answered exactly:      0 of 1" in done.stdout
    assert "unrelated, answer unchanged:   0 of 1" in done.stdout
    assert "adapter disabled, base back:   yes" in done.stdout


@pytest.mark.parametrize("opened", [0, 1])
@pytest.mark.parametrize("as_json", [False, True])
def test_the_demo_exits_as_the_opening_does(
    hf_edit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: int, as_json: bool
) -> None:
    calls: list[Any] = []

    def compute(base: str, edits: EditSet, out: Path) -> Applied:
        calls.append((base, len(edits)))
        return Applied(make_pack(out, size=1.0), out, 1.0, ["before"], ["after"])

    def run(arguments: list[str], stdout: int | None, **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(arguments[1:])
        return subprocess.CompletedProcess(arguments, opened, "1 of 1" if stdout == subprocess.PIPE else None)

    monkeypatch.setattr(loading, "export_embedded", lambda directory: directory)
    monkeypatch.setattr(command, "compute_pack", compute)
    monkeypatch.setattr(subprocess, "run", run)
    result = hf_edit("demo", "--workdir", tmp_path, *(["--json"] if as_json else []))
    assert result.exit_code == opened
    assert calls == [(str(tmp_path / "base"), 3), [str(SCRIPT), str(tmp_path / "base"), str(tmp_path / "pack")]]
    if as_json:
        document = json.loads(result.stdout)
        assert document["opened"] == {"holds": not opened, "said": "1 of 1"}
        assert (document["edits"][0]["before"], document["edits"][0]["after"]) == ("before", "after")
        assert "3  The pack" in result.stderr
    else:
        assert "before" in result.stdout and "after" in result.stdout
