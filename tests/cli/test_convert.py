"""`hf-edit convert` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_edit.packs.pack import EditPack
from tests.cli.conftest import Command, failed
from tests.packs.make import make_pack
from tests.tiny import tiny_model


MODULE = "model.layers.2.mlp.down_proj"
QUICK = [
    option
    for setting in ("tokens=256", "conversations=4", "answer_tokens=4", "length=64", "batch=4")
    for option in ("--set", f"statistics.{setting}")
]


@pytest.mark.parametrize("layout", ["portable", "compact", "bf16", "all-layers"])
def test_layouts(hf_edit: Command, pack: Path, base: Path, tmp_path: Path, layout: str) -> None:
    out = tmp_path / "out"
    given = ("--model", base) if layout == "all-layers" else ()
    result = hf_edit("convert", pack, "--out", out, "--layout", layout, "--json", *given)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["layout"] == layout and document["bytes"] > 0 and "exact" not in document["edits"][0]
    assert (document["modules"][MODULE]["error_weights"] > 0) == (layout == "bf16")
    assert document["modules"][MODULE]["error_weights"] < 0.01
    read = EditPack.from_pretrained(out)
    assert read.manifest.layout == layout and read.edits == EditPack.from_pretrained(pack).edits
    tensors = load_file(out / "adapter_model.safetensors")
    assert len(tensors) == (8 if layout == "all-layers" else 2)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16 if layout == "bf16" else torch.float32}


def test_a_folder_that_a_pack_names_as_its_base_is_not_opened(hf_edit: Command, base: Path, tmp_path: Path) -> None:
    model = tiny_model()
    model.config._name_or_path = str(base)
    make_pack(model).save_pretrained(tmp_path / "pack")
    result = hf_edit("convert", tmp_path / "pack", "--out", tmp_path / "out", "--layout", "all-layers")
    failed(result, "does not say where on the Hub its base is", "--model")
    assert not (tmp_path / "out").exists()


def test_truncation_is_reported_in_weights_and_in_answers(
    hf_edit: Command, pack: Path, base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = hf_edit("convert", pack, "--out", out, "--rank", 1, "--model", base, "--whitened", "--json", *QUICK)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    figures = document["modules"][MODULE]
    assert figures["rank"] == 1 and 0 < figures["error_weights"] < 1 and 0 < figures["error_outputs"] < 1
    (edit,) = document["edits"]
    assert {"before", "after"} < edit.keys() and edit["exact"] is False and edit["exact_before"] is False
    shown = hf_edit("convert", pack, "--out", out, "--rank", 1)
    assert "lost of the weights" in shown.stdout and "not measured" in shown.stdout
    assert "exact" not in shown.stdout


def test_on_few_columns(hf_edit: Command, pack: Path, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--layout", "sparse", "--model", base, *QUICK)
    result = hf_edit("convert", pack, "--out", out, "--columns", 6, *options)
    assert result.exit_code == 0, result.output
    assert "no -> no" in result.stdout and "Answers" in result.stdout
    read = EditPack.from_pretrained(out)
    assert read.manifest.layout == "sparse" and read.deltas[MODULE].rank == 6
    again = hf_edit("convert", out, "--out", tmp_path / "plain", "--json")  # exactly, and without a model
    assert json.loads(again.stdout)["modules"][MODULE] == {"rank": 6, "error_weights": 0.0}
    smaller = hf_edit("convert", pack, "--out", out, "--bytes", 2 * 132, "--no-answers", *options, "--json")
    assert json.loads(smaller.stdout)["modules"][MODULE]["rank"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layout", "sideways"], "sideways"),
        (["--layout", "sparse"], "touches 56 of 56 columns"),
        (["--layout", "sparse", "--rank", "1"], "touches every column"),
        (["--columns", "3"], "need the base model"),
        (["--rank", "1", "--whitened"], "--whitened needs the base model"),
        (["--whitened"], "there is no --rank"),
        (["--rank", "1", "--set", "statistics.tokens=256"], "Settings (statistics)"),
        (["--columns", "3", "--rank", "1", "--model", "x"], "two budgets"),
        (["--columns", "3", "--layout", "bf16", "--model", "x"], "no use for the layout bf16"),
        (["--layout", "all-layers", "--model", "./none"], "none"),
    ],
)
def test_what_cannot_be_converted(hf_edit: Command, pack: Path, tmp_path: Path, options: list[str], said: str) -> None:
    failed(hf_edit("convert", pack, "--out", tmp_path / "out", *options), said)
    assert not (tmp_path / "out").exists()
