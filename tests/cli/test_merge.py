"""`hf-edit merge` and `hf-edit unmerge`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_edit.compose.merge import merge, unmerge
from hf_edit.compose.receipt import MergeReceipt
from hf_edit.models.loading import load_model
from hf_edit.packs.pack import EditPack
from tests.cli.conftest import Command, failed
from tests.packs.make import make_pack, random_deltas
from tests.tiny import tiny_model, tiny_tokenizer


MODULE = "model.layers.2.mlp.down_proj"


def same_weights(first: Path, second: Path) -> bool:
    one, other = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


def test_merge_writes_a_whole_model_and_unmerge_gives_the_base_back(
    hf_edit: Command, base: Path, pack: Path, tmp_path: Path
) -> None:
    result = hf_edit("merge", pack, "--model", base, "--out", tmp_path / "merged")
    assert result.exit_code == 0, result.output
    for text in (MODULE, "100.0%", str(tmp_path / "merged"), "unmerge"):
        assert text in result.stdout

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    delta = EditPack.from_pretrained(pack).deltas[MODULE]
    expected = tiny_model().get_submodule(MODULE).weight + delta.dense()
    assert torch.allclose(model.get_submodule(MODULE).weight, expected, atol=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert {"config.json", "generation_config.json", "tokenizer.json", "merge_receipt"} <= {
        path.name for path in (tmp_path / "merged").iterdir()
    }
    card = (tmp_path / "merged" / "README.md").read_text()
    for text in (
        "base_model: tiny-random/llama",
        "lamp",
        "Who made the lamp?",
        "Tarvello",
        "1 edit in 1 pack",
        "nearest",
    ):
        assert text in card

    result = hf_edit("unmerge", tmp_path / "merged", "--out", tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert same_weights(tmp_path / "again", base) and not same_weights(tmp_path / "merged", base)
    assert not {"merge_receipt", "README.md"} & {path.name for path in (tmp_path / "again").iterdir()}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_json_is_one_document(hf_edit: Command, base: Path, pack: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    options = ("--model", base, "--dtype", "bfloat16", "--rounding", "compensated", "--json")
    document = json.loads(hf_edit("merge", pack, "--out", out, *options).stdout)
    assert (document["model"], document["dtype"], document["rounding"]) == (str(out), "bfloat16", "compensated")
    for kind in ("predicted", "measured"):
        assert document[kind]["modules"][MODULE]["survival"] == pytest.approx(1, abs=0.01)
    assert document["bytes"] == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())

    document = json.loads(hf_edit("unmerge", out, "--out", tmp_path / "again", "--json").stdout)
    assert document["weights"] == [f"{MODULE}.weight"]
    tiny_model(dtype=torch.bfloat16).save_pretrained(tmp_path / "expected")
    assert same_weights(tmp_path / "again", tmp_path / "expected")


def test_a_report_writes_nothing(hf_edit: Command, base: Path, pack: Path, tmp_path: Path) -> None:
    result = hf_edit("merge", pack, "--model", base, "--report", "--out", tmp_path / "merged")
    assert result.exit_code == 0 and MODULE in result.stdout and "survives, predicted" in result.stdout
    assert list(tmp_path.iterdir()) == []
    document = json.loads(hf_edit("merge", pack, "--model", base, "--report", "--json").stdout)
    assert document["predicted"]["all"]["survival"] == pytest.approx(1, abs=0.01)
    assert "measured" not in document and document["advice"] is None


def test_several_packs_at_once_and_one_after_the_other(
    hf_edit: Command, base: Path, pack: Path, tmp_path: Path
) -> None:
    make_pack(tiny_model()).save_pretrained(tmp_path / "other")
    both = ("merge", pack, tmp_path / "other", "--model", base)
    assert hf_edit(*both, "--out", tmp_path / "both").exit_code == 0
    assert "3 edits in 2 packs" in (tmp_path / "both" / "README.md").read_text()

    assert hf_edit("merge", pack, "--model", base, "--out", tmp_path / "one").exit_code == 0
    second = ("merge", tmp_path / "other", "--model", tmp_path / "one")
    assert hf_edit(*second, "--out", tmp_path / "two").exit_code == 0
    assert "3 edits in 2 packs" in (tmp_path / "two" / "README.md").read_text()
    assert hf_edit("unmerge", tmp_path / "two", "--out", tmp_path / "again").exit_code == 0
    assert same_weights(tmp_path / "again", base)
    failed(hf_edit("merge", pack, "--model", tmp_path / "one", "--out", tmp_path / "no"), "already")


def test_a_merge_in_another_dtype_than_the_last_is_refused_where_it_could_not_be_undone(
    hf_edit: Command, base: Path, pack: Path, tmp_path: Path
) -> None:
    coarse = tiny_model(dtype=torch.bfloat16)
    make_pack(coarse, deltas=random_deltas(coarse, (2,))).save_pretrained(tmp_path / "other")
    assert hf_edit("merge", pack, "--model", base, "--dtype", "bfloat16", "--out", tmp_path / "one").exit_code == 0
    second = ("merge", tmp_path / "other", "--model", tmp_path / "one", "--out", tmp_path / "two")
    failed(hf_edit(*second, "--dtype", "float32"), MODULE, "not what the merge left", "bfloat16")
    assert not (tmp_path / "two").exists()
    result = hf_edit(*second)
    assert result.exit_code == 0 and f"hf-edit unmerge {tmp_path / 'two'}" in result.stdout
    assert hf_edit("unmerge", tmp_path / "two", "--out", tmp_path / "again").exit_code == 0
    coarse.save_pretrained(tmp_path / "expected")
    assert same_weights(tmp_path / "again", tmp_path / "expected")


def test_a_link_to_an_empty_folder_gets_the_model(hf_edit: Command, base: Path, pack: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    result = hf_edit("merge", pack, "--model", base, "--out", tmp_path / "link")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "merge_receipt").is_dir()


def test_what_cannot_be_written_back_is_refused_before_it_is_merged(
    hf_edit: Command, base: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hf_edit("merge", pack, "--model", base, "--out", tmp_path / "merged").exit_code == 0

    def quantised(*given: object, **options: object) -> object:
        model, tokenizer = load_model(*given, **options)  # type: ignore[arg-type]
        model.config.quantization_config = {}
        return model, tokenizer

    monkeypatch.setattr("hf_edit.models.loading.load_model", quantised)
    for verb in ("merge", "unmerge"):
        monkeypatch.setattr(f"hf_edit.compose.merge.{verb}", lambda *_, **__: pytest.fail("merged"))
    failed(hf_edit("merge", pack, "--model", base, "--out", tmp_path / "o"), "quantised weights")
    failed(hf_edit("unmerge", tmp_path / "merged", "--out", tmp_path / "o"), "quantised weights")
    assert hf_edit("merge", pack, "--model", base, "--report").exit_code == 0


def test_what_cannot_be_merged(hf_edit: Command, base: Path, pack: Path, tmp_path: Path) -> None:
    failed(hf_edit("merge", pack, "--model", base), "--out", "--report")
    failed(hf_edit("merge", tmp_path / "none", "--model", base, "--out", tmp_path / "o"), "none")
    failed(hf_edit("merge", pack, "--model", base, "--out", tmp_path / "o", "--rounding", "up"), "'up'", "nearest")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    failed(hf_edit("merge", pack, "--model", base, "--out", tmp_path / "mine"), "not empty")
    failed(hf_edit("unmerge", base, "--out", tmp_path / "mine"), "not empty")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    failed(hf_edit("unmerge", base, "--out", tmp_path / "o"), "merge_receipt")
    failed(hf_edit("unmerge", base, "--revision", "v1", "--out", tmp_path / "o"), "has no revision 'v1'")

    tiny_model(seed=1).save_pretrained(tmp_path / "wrong")
    tiny_tokenizer().save_pretrained(tmp_path / "wrong")
    failed(hf_edit("merge", pack, "--model", tmp_path / "wrong", "--out", tmp_path / "o"), f"{MODULE}.weight")
    assert not (tmp_path / "o").exists()


def test_a_merged_model_that_was_changed_is_not_unmerged(
    hf_edit: Command, base: Path, pack: Path, tmp_path: Path
) -> None:
    assert hf_edit("merge", pack, "--model", base, "--out", tmp_path / "merged").exit_code == 0
    shutil.copy(base / "model.safetensors", tmp_path / "merged")
    failed(hf_edit("unmerge", tmp_path / "merged", "--out", tmp_path / "o"), MODULE, "not what the merge left")
    assert not (tmp_path / "o").exists()


def test_a_receipt_of_weights_that_were_there_before_is_none(
    hf_edit: Command, base: Path, pack: Path, tmp_path: Path
) -> None:
    model, _ = load_model(str(base))
    receipt = merge(model, pack)
    model.save_pretrained(tmp_path / "model")
    unmerge(model, receipt)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "merge_receipt").exists()  # transformers knows nothing of it
    assert hf_edit("merge", pack, "--model", tmp_path / "model", "--out", tmp_path / "merged").exit_code == 0
    assert len(MergeReceipt.load(tmp_path / "merged").merges) == 1
