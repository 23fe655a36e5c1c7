"""A saved tiny model, a pack of it, and the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from hf_edit.cli.main import app
from hf_edit.edits import Edit, EditSet
from hf_edit.packs.pack import EditPack
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta
from tests.tiny import tiny_model, tiny_tokenizer


Command = Callable[..., Result]


@pytest.fixture
def hf_edit() -> Command:
    """`hf_edit("verify", pack, "--model", base)`; a traceback fails the test where it happens."""

    def run(*arguments: object) -> Result:
        # wide enough that no table or message is folded
        return CliRunner().invoke(
            app, [str(a) for a in arguments], env={"COLUMNS": "200"}, catch_exceptions=False, prog_name="hf-edit"
        )

    return run


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer."""
    path = tmp_path_factory.mktemp("model") / "base"
    tiny_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of that model with one random delta of rank 2."""
    path = tmp_path_factory.mktemp("packs") / "pack"
    generator = torch.Generator().manual_seed(1)
    delta = LowRankDelta(torch.randn(32, 2, generator=generator), torch.randn(2, 56, generator=generator))
    EditPack.build(
        tiny_model(),
        deltas={"model.layers.2.mlp.down_proj": delta},
        edits=EditSet([Edit("Who made the lamp?", "Tarvello [made] it.", id="lamp")]),
        source=None,
        method="anyedit",
        config={"window": 20, "backend": "direct"},
        seed=0,
        prompt_format=PromptFormat.of("chat", tiny_tokenizer()),
        receipt={},
    ).save_pretrained(path)
    return path


def failed(result: Result, *said: str) -> None:
    """Assert that the command told a user's mistake: exit code 2, two lines on stderr, nothing on stdout."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    error, fix = result.stderr.strip().split("\nfix: ")
    assert error.startswith("error: ") and fix
    for text in said:
        assert text in result.stderr
