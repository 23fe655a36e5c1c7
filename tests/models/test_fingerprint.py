"""Base models are recognised by their weights: across dtypes, through wrappers, and not mistaken for one another."""

from __future__ import annotations

import hashlib
import struct

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_edit.errors import UnsupportedModelError
from hf_edit.models.fingerprint import (
    base_modules,
    dtype_name,
    matches,
    model_fingerprint,
    running_fingerprint,
    tensor_digests,
)
from hf_edit.sparse.config import SparseConfig
from tests.tiny import FAMILIES, tiny_model


def record(tensor: torch.Tensor) -> dict:
    return {"dtype": dtype_name(tensor.dtype), "shape": list(tensor.shape), "sha256": tensor_digests(tensor)}


def test_the_digest_is_of_row_major_little_endian_bytes() -> None:
    tensor = torch.tensor([[1.0, 2.5], [-3.0, 4.0]]).T
    values = [1.0, -3.0, 2.5, 4.0]
    digests = tensor_digests(tensor)
    assert digests["float32"] == hashlib.sha256(struct.pack("<4f", *values)).hexdigest()
    assert digests["float16"] == hashlib.sha256(struct.pack("<4e", *values)).hexdigest()
    halves = b"".join(struct.pack("<f", value)[2:] for value in values)  # bfloat16 is the upper half of float32
    assert digests["bfloat16"] == hashlib.sha256(halves).hexdigest()


def test_large_tensors_are_digested_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(7, 11)
    whole = tensor_digests(tensor)
    monkeypatch.setattr("hf_edit.models.fingerprint._CHUNK", 10)
    assert tensor_digests(tensor) == whole


@pytest.mark.parametrize("now", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("checkpoint", [torch.float32, torch.bfloat16, torch.float16])
def test_a_base_loaded_in_another_dtype_is_recognised(checkpoint: torch.dtype, now: torch.dtype) -> None:
    stored = torch.randn(5, 9).to(checkpoint)
    recorded = record(stored)
    assert matches(recorded, stored.to(now))
    other = stored.clone()
    other[2, 3] *= 1.5
    assert not matches(recorded, other.to(now))


def test_another_shape_does_not_match() -> None:
    tensor = torch.randn(4, 6)
    assert not matches(record(tensor), tensor.reshape(6, 4))


@pytest.mark.parametrize("bad", [torch.empty(2, 2, device="meta"), torch.zeros(2, 2, dtype=torch.uint8)])
def test_tensors_without_weights_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(UnsupportedModelError, match=r"\(2, 2\)") as caught:
        tensor_digests(bad)
    assert "Load the model" in caught.value.remedy


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_fingerprint_sees_through_adapters(family: str) -> None:
    model = tiny_model(family)
    plain, names = model_fingerprint(model), [name for name, _ in base_modules(model)]
    config = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["lm_head", "embed_out"])
    host = get_peft_model(model, config)
    assert model_fingerprint(host) == model_fingerprint(host.get_base_model()) == plain
    assert [name for name, _ in base_modules(host)] == names


def test_the_fingerprint_tells_models_apart() -> None:
    model = tiny_model()
    fingerprints = {model_fingerprint(m) for m in (model, tiny_model(seed=1), tiny_model(dtype=torch.bfloat16))}
    fingerprints.add(model_fingerprint(tiny_model("qwen2")))
    assert len(fingerprints) == 4
    assert model_fingerprint(tiny_model()) in fingerprints


def test_a_librarys_own_kind_of_weight_is_named() -> None:
    class Codes(torch.Tensor):
        pass

    codes = torch.ones(4, 4).as_subclass(Codes)
    recorded = {"dtype": "float32", "shape": [4, 4], "sha256": tensor_digests(torch.ones(4, 4))}
    for read in (tensor_digests, lambda tensor: matches(recorded, tensor)):
        with pytest.raises(UnsupportedModelError, match="holds quantised codes"):
            read(codes)


def test_a_change_of_any_column_of_a_wide_weight_is_seen() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4096, 16))
    before = model_fingerprint(model)
    with torch.no_grad():
        model[0].weight[:, 1:] += 1
    assert model_fingerprint(model) != before


@pytest.mark.parametrize("first", [0, 5000, 14300])
def test_a_change_of_a_few_columns_of_a_large_weight_is_seen(first: int) -> None:
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(14336, 4096, bias=False, dtype=torch.bfloat16))
    model = model.to_empty(device="cpu")
    torch.nn.init.zeros_(model[0].weight)
    before = model_fingerprint(model)
    with torch.no_grad():
        model[0].weight[:, first : first + 36] += 1
    assert model_fingerprint(model) != before


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_trained_copies_of_whole_modules_run_too() -> None:
    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    before = running_fingerprint(model)
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(2)
    assert running_fingerprint(model) != before
    with model.disable_adapter():
        assert running_fingerprint(model) == running_fingerprint(tiny_model())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_buffers_of_an_adapter_count_too() -> None:
    name, found = "model.layers.1.mlp.down_proj", []
    for columns in ([0, 1, 2], [5, 6, 7]):
        model = get_peft_model(tiny_model(), SparseConfig(columns={name: 3}))
        layer = model.base_model.model.get_submodule(name)
        layer.hf_edit_sparse_values["default"].data.fill_(1.0)
        layer.hf_edit_sparse_columns["default"] = torch.tensor(columns, dtype=torch.int32)
        found.append(running_fingerprint(model))
    assert found[0] != found[1]
