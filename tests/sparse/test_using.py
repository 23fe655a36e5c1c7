"""Sparse adapters in PEFT and transformers: every way of opening, several at once, deleting."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_edit.compose.attach import attach
from hf_edit.errors import ComposeError
from hf_edit.packs.pack import EditPack
from hf_edit.sparse.layer import SparseLinear
from tests.compose.test_attach import with_user_lora
from tests.packs.make import IDS, dense_logits, logits, make_pack
from tests.sparse.make import COUNTS, TOLERANCE, saved
from tests.tiny import FAMILIES, tiny_model


pytestmark = [
    # PEFT asks transformers for the name that transformers has deprecated
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),  # of a second adapter
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),  # saving asks for the base's config
]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_of_opening_equals_dense_weights(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path / "base")
    load = lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()  # noqa: E731
    base = load(tmp_path / "base")
    pack = saved(base, tmp_path / "pack")
    expected = dense_logits(base, pack.deltas)
    assert (expected - logits(base)).abs().max() > 0.1

    plain = load(tmp_path / "base")
    plain.load_adapter(tmp_path / "pack")
    attached = load(tmp_path / "base")
    attach(attached, tmp_path / "pack")
    ways = {
        "load_adapter": plain,
        "attach": attached,
        "PeftModel": PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "pack"),
        "AutoModel": load(tmp_path / "pack"),
    }
    for way, model in ways.items():
        assert (logits(model) - expected).abs().max() <= TOLERANCE, way
        layers = [module for module in model.modules() if isinstance(module, SparseLinear)]
        assert [layer.hf_edit_sparse_values[layer.active_adapters[0]].shape[1] for layer in layers] == list(COUNTS), (
            way
        )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_in_bf16_it_is_the_portable_adapter_bit_for_bit(family: str, tmp_path: Path) -> None:
    base = tiny_model(family, dtype=torch.bfloat16)
    pack = saved(base, tmp_path / "sparse")
    pack.save_pretrained(tmp_path / "portable")
    for load in (
        lambda path: (model := copy.deepcopy(base)).load_adapter(path) and model,
        lambda path: PeftModel.from_pretrained(copy.deepcopy(base), path),
    ):
        assert torch.equal(logits(load(tmp_path / "sparse")), logits(load(tmp_path / "portable")))


def test_what_is_loaded_is_what_is_in_the_file(tmp_path: Path) -> None:
    model = tiny_model()
    saved(model, tmp_path)
    model.load_adapter(tmp_path, adapter_name="edit")
    file = load_file(tmp_path / "adapter_model.safetensors")
    module = "model.layers.1.mlp.down_proj"
    layer = model.get_submodule(module)
    assert layer.hf_edit_sparse_columns["edit"].dtype == torch.int32
    assert torch.equal(layer.hf_edit_sparse_columns["edit"], file[f"base_model.model.{module}.hf_edit_sparse_columns"])
    assert torch.equal(layer.hf_edit_sparse_values["edit"], file[f"base_model.model.{module}.hf_edit_sparse_values"])
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_at_once_add_up_and_disabled_they_leave_the_base(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny_model(family, dtype=dtype)
    before = logits(model)
    first, second = saved(model, tmp_path / "1", seed=1), saved(model, tmp_path / "2", seed=2)
    for name in "12":
        model.load_adapter(tmp_path / name, adapter_name=f"pack{name}")
    tolerance = TOLERANCE if dtype == torch.float32 else 1.0
    model.set_adapter(["pack1", "pack2"])
    both = dense_logits(tiny_model(family, dtype=dtype), first.deltas, second.deltas)
    assert (logits(model) - both).abs().max() <= tolerance
    model.set_adapter("pack1")
    assert (logits(model) - dense_logits(tiny_model(family, dtype=dtype), first.deltas)).abs().max() <= tolerance
    model.disable_adapters()
    assert torch.equal(logits(model), before)
    model.enable_adapters()
    assert not torch.equal(logits(model), before)


@pytest.mark.parametrize("lora_first", [True, False])
def test_beside_a_lora_adapter(lora_first: bool, tmp_path: Path) -> None:
    """On one module both: each wraps the other."""
    model = tiny_model()
    pack = saved(model, tmp_path)
    if not lora_first:
        model.load_adapter(tmp_path, adapter_name="edit")
    with_user_lora(model)
    if lora_first:
        model.load_adapter(tmp_path, adapter_name="edit")
    merged = with_user_lora(tiny_model())
    for name, delta in pack.deltas.items():
        module = merged.get_submodule(name)
        getattr(module, "base_layer", module).weight.data += delta.dense()
    model.set_adapter(["mine", "edit"])
    assert (logits(model) - logits(merged)).abs().max() <= TOLERANCE
    model.set_adapter("edit")
    assert (logits(model) - dense_logits(tiny_model(), pack.deltas)).abs().max() <= TOLERANCE
    model.disable_adapters()
    assert torch.equal(logits(model), logits(tiny_model()))


def test_several_in_a_peft_model(tmp_path: Path) -> None:
    first, second = saved(tiny_model(), tmp_path / "1", seed=1), saved(tiny_model(), tmp_path / "2", seed=2)
    model = PeftModel.from_pretrained(tiny_model(), tmp_path / "1", adapter_name="one")
    model.load_adapter(tmp_path / "2", adapter_name="two")
    assert (logits(model) - dense_logits(tiny_model(), first.deltas)).abs().max() <= TOLERANCE
    model.base_model.set_adapter(["one", "two"], inference_mode=True)
    assert (logits(model) - dense_logits(tiny_model(), first.deltas, second.deltas)).abs().max() <= TOLERANCE
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny_model()))
    with pytest.raises(ComposeError, match="row by row"):
        model(IDS, adapter_names=["one", "two"])
    model.delete_adapter("one")
    model.set_adapter("two")
    assert (logits(model) - dense_logits(tiny_model(), second.deltas)).abs().max() <= TOLERANCE


def test_deleting_gives_the_base_back(tmp_path: Path) -> None:
    model = tiny_model()
    before = logits(model)
    saved(model, tmp_path)
    model.load_adapter(tmp_path, adapter_name="edit")
    model.delete_adapter("edit")
    assert torch.equal(logits(model), before)
    assert not any("hf_edit_sparse" in key for key in model.state_dict())


def test_an_adapter_counts_as_often_as_its_scale_says(tmp_path: Path) -> None:
    model = tiny_model()
    pack = saved(model, tmp_path)
    model.load_adapter(tmp_path, adapter_name="edit")
    for module in model.modules():
        if isinstance(module, SparseLinear):
            module.set_scale("edit", 2.0)
            module.set_scale("another", 9.0)
    assert (logits(model) - dense_logits(tiny_model(), pack.deltas, pack.deltas)).abs().max() <= TOLERANCE


def test_attach_uses_the_sparse_layer_where_the_host_takes_it(tmp_path: Path) -> None:
    pack = saved(tiny_model(), tmp_path)
    read = EditPack.from_pretrained(tmp_path)
    expected = dense_logits(tiny_model(), pack.deltas)
    kinds = {}
    for name, host in {
        "plain": tiny_model(),
        "beside lora": with_user_lora(tiny_model()),
        "sparse peft": PeftModel.from_pretrained(tiny_model(), tmp_path, adapter_name="first"),
        "lora peft": get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"]), "mine"),
    }.items():
        attach(host, read, "edit")
        kinds[name] = any(isinstance(module, SparseLinear) for module in host.modules())
        if isinstance(host, PeftModel):
            host.base_model.set_adapter(["edit"], inference_mode=True)
        else:
            host.set_adapter("edit")
        assert (logits(host) - expected).abs().max() <= TOLERANCE, name
    assert kinds == {"plain": True, "beside lora": True, "sparse peft": True, "lora peft": False}


def test_a_dense_pack_does_not_go_into_a_peft_model_of_sparse_adapters(tmp_path: Path) -> None:
    saved(tiny_model(), tmp_path)
    host = PeftModel.from_pretrained(tiny_model(), tmp_path, adapter_name="first")
    with pytest.raises(ComposeError, match="type HF_EDIT_SPARSE"):
        attach(host, make_pack(tiny_model()), "edit")
