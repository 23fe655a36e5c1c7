"""The layouts sparse and all-layers, on disk and back; truncated packs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from hf_edit.errors import BaseMismatchError, PackError
from hf_edit.packs.contents import MANIFEST
from hf_edit.packs.layout import adapter_keys, adapter_tensors, laid_out, read_deltas, sparse_keys
from hf_edit.packs.manifest import Manifest
from hf_edit.packs.pack import EditPack
from hf_edit.packs.siblings import siblings
from hf_edit.solvers.low_rank import LowRankDelta
from tests.packs.hostile import in_json, reseal
from tests.packs.make import dense_logits, logits, make_pack, random_deltas, same_pack, sparse_deltas
from tests.packs.test_manifest import sealed
from tests.tiny import FAMILIES, tiny_model


MODULE = "model.layers.0.mlp.down_proj"
COLUMNS, VALUES = sparse_keys(MODULE)


def sparse_pack(family: str = "llama") -> EditPack:
    model = tiny_model(family)
    return make_pack(model, deltas=sparse_deltas(model, (4, 9, 1)))


# ---- sparse ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_sparse_and_portable_hold_the_same_change_bit_for_bit(family: str, tmp_path: Path) -> None:
    pack = sparse_pack(family)
    pack.save_pretrained(tmp_path / "sparse", layout="sparse")
    read = EditPack.from_pretrained(tmp_path / "sparse")
    assert same_pack(read, replace(pack, manifest=replace(pack.manifest, layout="sparse")))
    read.save_pretrained(tmp_path / "portable")
    again = EditPack.from_pretrained(tmp_path / "portable")
    assert same_pack(again, pack)
    again.save_pretrained(tmp_path / "again", layout="sparse")
    for file in (tmp_path / "sparse").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_what_a_sparse_file_holds(tmp_path: Path) -> None:
    pack = sparse_pack()
    pack.save_pretrained(tmp_path, layout="sparse")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["columns"] == {f"model.layers.{i}.mlp.down_proj": n for i, n in enumerate((4, 9, 1))}
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert tensors[COLUMNS].dtype == torch.int32 and tensors[VALUES].shape == (32, 4)
    assert torch.equal(tensors[VALUES], pack.deltas[MODULE].dense()[:, tensors[COLUMNS].long()])


def test_factors_that_touch_few_columns_are_sparse_too(tmp_path: Path) -> None:
    A = torch.zeros(2, 56)
    A[:, [50, 3, 7]] = torch.randn(2, 3)
    pack = make_pack(tiny_model(), deltas={MODULE: LowRankDelta(torch.randn(32, 2), A)})
    pack.save_pretrained(tmp_path, layout="sparse")
    read = EditPack.from_pretrained(tmp_path)
    assert read.manifest.modules[MODULE].rank == 3 and pack.manifest.modules[MODULE].rank == 2
    torch.testing.assert_close(read.deltas[MODULE].dense(), pack.deltas[MODULE].dense())


def test_a_dense_change_is_refused_and_told_how_to_become_sparse(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="touches 56 of 56 columns; the layout sparse holds up to 32") as caught:
        make_pack(tiny_model()).save_pretrained(tmp_path / "pack", layout="sparse")
    assert "hf_edit.sparsify" in caught.value.remedy and "hf-edit convert" in caught.value.remedy
    assert not (tmp_path / "pack").exists()


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({COLUMNS: None}, f"lacks tensor {COLUMNS}"),
        ({VALUES: None}, f"lacks tensor {VALUES}"),
        ({"extra": torch.zeros(1)}, "extra tensor extra"),
        ({adapter_keys(MODULE)[0]: torch.zeros(4, 56)}, "extra tensor"),
        ({COLUMNS: ints(1, 2, 3)}, r"shape \(3,\) instead"),
        ({COLUMNS: ints(1, 2, 3, 4)[None]}, r"shape \(1, 4\) instead"),
        ({COLUMNS: torch.tensor([1, 2, 3, 4])}, "int64"),
        ({COLUMNS: torch.tensor([1.0, 2.0, 3.0, 4.0])}, "float32 of shape .* instead of torch.int32"),
        ({COLUMNS: ints(1, 2, 3, 56)}, r"not among 0\.\.55"),
        ({COLUMNS: ints(-1, 2, 3, 4)}, r"not among 0\.\.55"),
        ({COLUMNS: ints(1, 3, 2, 4)}, "each once and in order"),
        ({COLUMNS: ints(1, 2, 2, 4)}, "each once and in order"),
        ({VALUES: torch.zeros(32, 5)}, r"shape \(32, 5\) instead"),
        ({VALUES: torch.zeros(32, 4).half()}, "float16"),
        ({VALUES: torch.full((32, 4), torch.nan)}, "NaN"),
        ({VALUES: torch.full((32, 4), torch.inf)}, "infinity"),
    ],
)
def test_other_sparse_tensors_than_declared_are_refused(changes: dict[str, Tensor | None], message: str) -> None:
    manifest, deltas = laid_out(sparse_pack().manifest, sparse_pack().deltas, "sparse")
    tensors = adapter_tensors(manifest, deltas) | changes
    with pytest.raises(PackError, match=message):
        read_deltas(manifest, {name: tensor for name, tensor in tensors.items() if tensor is not None})


# ---- all layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_covers_every_block_and_changes_nothing(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    pack = make_pack(model, deltas=random_deltas(model, (2, 3)))
    pack.with_all_layers(model).save_pretrained(tmp_path, layout="all-layers")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 2 * 4 and {tensor.shape[-1] for k, tensor in tensors.items() if "lora_B" in k} == {3}
    read = EditPack.from_pretrained(tmp_path)
    assert read.deltas.keys() == pack.deltas.keys()
    model.load_adapter(tmp_path)
    assert (logits(model) - dense_logits(tiny_model(family), pack.deltas)).abs().max() <= 2e-5
    read.save_pretrained(tmp_path, layout="all-layers")  # it knows by itself now
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == tensors.keys()
    read.save_pretrained(tmp_path)
    assert same_pack(EditPack.from_pretrained(tmp_path), pack)


def test_all_layers_needs_to_know_the_base(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="not known from the pack alone") as caught:
        make_pack(tiny_model()).save_pretrained(tmp_path / "pack", layout="all-layers")
    assert "with_all_layers" in caught.value.remedy
    with pytest.raises(BaseMismatchError, match="no linear map model.layers.0"):
        make_pack(tiny_model()).with_all_layers(tiny_model("gpt2"))


def test_siblings_are_the_same_maps_of_other_blocks() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("gpt2", n_layer=3, n_embd=8, n_head=2, n_inner=5)
        )
    found = siblings(model, ["transformer.h.1.mlp.c_proj", "transformer.h.0.attn.c_attn", "lm_head"])
    assert found == {
        "transformer.h.0.mlp.c_proj": (8, 5),
        "transformer.h.2.mlp.c_proj": (8, 5),
        "transformer.h.1.attn.c_attn": (24, 8),
        "transformer.h.2.attn.c_attn": (24, 8),
    }


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.pop("zero_filled"), "zero_filled and layout disagree"),
        (lambda c: c.update(layout="portable"), "zero_filled and layout disagree"),
        (lambda c: c["zero_filled"].update({"a b": [2, 2]}), "'a b' is not the name of a module"),
        (lambda c: c["zero_filled"].update({MODULE: [2, 2]}), "both changed and filled"),
        (lambda c: c["zero_filled"].update({"x": [2]}), r"shape \[2\]"),
        (lambda c: c["zero_filled"].update({"x": [2, 0]}), r"shape \[2, 0\]"),
        (lambda c: c.update(zero_filled=[1]), "zero_filled is a list"),
    ],
)
def test_manifests_of_all_layers_are_read_strictly(spoil, message: str) -> None:
    manifest = make_pack(tiny_model()).with_all_layers(tiny_model()).manifest
    content = json.loads(replace(manifest, layout="all-layers").to_bytes())
    del content["digest"]
    assert Manifest.from_bytes(sealed(content)).zero_filled == {"model.layers.3.mlp.down_proj": (32, 56)}
    spoil(content)
    with pytest.raises(PackError, match=message):
        Manifest.from_bytes(sealed(content))


def test_what_is_said_to_be_zero_must_be_zero() -> None:
    pack = make_pack(tiny_model()).with_all_layers(tiny_model())
    manifest, deltas = laid_out(pack.manifest, pack.deltas, "all-layers")
    tensors = adapter_tensors(manifest, deltas)
    read_deltas(manifest, tensors)
    tensors[adapter_keys("model.layers.3.mlp.down_proj")[0]][0, 0] = 1.0
    with pytest.raises(PackError, match="layers.3.* are not zero"):
        read_deltas(manifest, tensors)


# ---- truncated -------------------------------------------------------------------------------------------------


def test_a_truncated_pack_says_what_it_lost_and_where_it_comes_from(tmp_path: Path) -> None:
    model = tiny_model()
    pack = make_pack(model, (1, 5, 3))
    smaller, errors = pack.truncated(2)
    assert [delta.rank for delta in smaller.deltas.values()] == [1, 2, 2]
    for name, error in errors.items():
        difference = (smaller.deltas[name].dense() - pack.deltas[name].dense()).norm()
        assert abs(float(difference / pack.deltas[name].dense().norm()) - error.weights) < 1e-5
    assert errors[MODULE].weights < 1e-6 and errors["model.layers.1.mlp.down_proj"].weights > 0.1
    smaller.verify(model)
    smaller.save_pretrained(tmp_path)
    read = EditPack.from_pretrained(tmp_path)
    assert same_pack(read, smaller)
    assert read.manifest.method.name == "truncate"
    assert read.manifest.parents[0]["method"]["name"] == pack.manifest.method.name
    assert read.edits == pack.edits


def test_with_moments_what_the_inputs_see_is_kept() -> None:
    pack = make_pack(tiny_model(), (5, 5))
    scales = torch.logspace(1, -1, 56).double()
    moments = {name: torch.diag(scales.square()) for name in pack.deltas}

    def lost(smaller: EditPack) -> float:
        return sum(float(((pack.deltas[n].dense() - d.dense()) * scales).norm()) for n, d in smaller.deltas.items())

    plain, whitened = pack.truncated(2)[0], pack.truncated(2, moments=moments)
    assert lost(whitened[0]) < lost(plain)
    assert all(error.outputs is not None and error.outputs > 0 for error in whitened[1].values())


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(PackError, match="rank = 0"):
        make_pack(tiny_model()).truncated(0)


@pytest.mark.parametrize(("d_in", "said"), [((1 << 31) - 1, "has the shape"), (1 << 24, "MiB in memory")])
def test_columns_of_a_huge_matrix_are_refused_before_they_fill_the_memory(
    d_in: int, said: str, tmp_path: Path
) -> None:
    model = tiny_model()
    pack = make_pack(model, deltas=sparse_deltas(model, (32, 32)))
    pack.save_pretrained(tmp_path / "pack", layout="sparse")
    name = min(pack.manifest.base.tensors)
    in_json(MANIFEST, "base", "tensors", name, "shape", 1, value=d_in)(tmp_path / "pack")
    reseal(tmp_path / "pack")
    with pytest.raises(PackError, match=said):
        EditPack.from_pretrained(tmp_path / "pack")
