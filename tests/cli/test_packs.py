"""`hf-edit inspect` and `hf-edit verify`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Command, failed
from tests.tiny import tiny_model, tiny_tokenizer


def test_inspect_shows_what_the_pack_teaches_and_holds(hf_edit: Command, pack: Path) -> None:
    result = hf_edit("inspect", pack)
    assert result.exit_code == 0
    for text in (
        "Who made the lamp?",
        "Tarvello [made] it.",  # not taken for markup
        "anyedit",
        "tiny-random/llama",
        "model.layers.2.mlp.down_proj",
        "32 x 56",
        "adapter_model.safetensors",
    ):
        assert text in result.stdout


def test_inspect_json_is_one_document(hf_edit: Command, pack: Path) -> None:
    document = json.loads(hf_edit("inspect", pack, "--json").stdout)
    assert document["edits"] == [{"id": "lamp", "prompt": "Who made the lamp?", "target": "Tarvello [made] it."}]
    module = document["modules"]["model.layers.2.mlp.down_proj"]
    assert (module["rank"], module["shape"]) == (2, [32, 56]) and module["norm"] > 0
    assert document["parameters"] == 2 * (32 + 56)
    assert document["bytes"] == sum(file.stat().st_size for file in pack.iterdir())
    assert {"adapter_config.json", "adapter_model.safetensors", "edits.jsonl"} <= set(document["files"])


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_a_missing_pack(hf_edit: Command, base: Path, tmp_path: Path, verb: str) -> None:
    model = ("--model", base) if verb == "verify" else ()
    failed(hf_edit(verb, tmp_path / "none", *model), "none")


def test_a_damaged_pack(hf_edit: Command, pack: Path, tmp_path: Path) -> None:
    shutil.copytree(pack, tmp_path / "pack")
    weights = tmp_path / "pack" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    failed(hf_edit("inspect", tmp_path / "pack"), "adapter_model.safetensors")


def test_verify_accepts_the_base(hf_edit: Command, base: Path, pack: Path) -> None:
    result = hf_edit("verify", pack, "--model", base)
    assert result.exit_code == 0
    assert result.stdout.startswith("verified: ")
    document = json.loads(hf_edit("verify", pack, "--model", base, "--json").stdout)
    assert document["verified"] is True and document["modules"] == ["model.layers.2.mlp.down_proj"]


def test_verify_refuses_another_base_of_the_same_shapes(hf_edit: Command, pack: Path, tmp_path: Path) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    failed(hf_edit("verify", pack, "--model", tmp_path), "model.layers.2.mlp.down_proj")

    result = hf_edit("verify", pack, "--model", tmp_path, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 2
    assert document["verified"] is False and document["error"] and document["fix"]
