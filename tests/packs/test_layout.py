"""Deltas to tensors and back, in every layout, and nothing but the declared tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from hf_edit.errors import PackError
from hf_edit.packs.layout import adapter_config, adapter_keys, adapter_shapes, adapter_tensors, canonical, read_deltas
from hf_edit.packs.manifest import BaseTensor, Manifest, Module
from hf_edit.solvers.low_rank import LowRankDelta
from tests.packs.make import make_pack
from tests.tiny import tiny_model


TEMPLATE = make_pack(tiny_model()).manifest


@st.composite
def updates(draw: st.DrawFn) -> tuple[Manifest, dict[str, LowRankDelta]]:
    """Deltas of several shapes, orientations and ranks with the manifest that declares them."""
    deltas, modules, tensors = {}, {}, {}
    torch.manual_seed(draw(st.integers(0, 1000)))
    for index in range(draw(st.integers(1, 4))):
        d_out, d_in = draw(st.integers(8, 12)), draw(st.integers(8, 12))
        rank, orientation = draw(st.integers(1, 8)), draw(st.sampled_from(["linear", "conv1d"]))
        scale = 10.0 ** draw(st.integers(-9, 9))
        name = f"layers.{index}.linear"
        deltas[name] = canonical(LowRankDelta(torch.randn(d_out, rank) * scale, torch.randn(rank, d_in) / scale))
        modules[name] = Module(rank, orientation)
        shape = (d_out, d_in) if orientation == "linear" else (d_in, d_out)
        tensors[f"{name}.weight"] = BaseTensor(shape, "float32", {})
    base = replace(TEMPLATE.base, tensors=tensors)
    layout = draw(st.sampled_from(["portable", "compact"]))
    return replace(TEMPLATE, base=base, modules=modules, layout=layout), deltas


@settings(deadline=None)
@given(updates())
def test_round_trip_keeps_every_bit(update: tuple[Manifest, dict[str, LowRankDelta]]) -> None:
    manifest, deltas = update
    tensors = adapter_tensors(manifest, deltas)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == adapter_shapes(manifest)
    read = read_deltas(manifest, tensors)
    assert read.keys() == deltas.keys()
    for name, delta in deltas.items():
        assert torch.equal(read[name].B, delta.B) and torch.equal(read[name].A, delta.A)


@settings(deadline=None)
@given(updates())
def test_the_configuration_gives_every_module_its_rank_and_scale_one(
    update: tuple[Manifest, dict[str, LowRankDelta]],
) -> None:
    manifest, deltas = update
    config = adapter_config(manifest, "me/base")
    uniform = max(delta.rank for delta in deltas.values())
    assert config["r"] == config["lora_alpha"] == uniform
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert bool(config["rank_pattern"]) == (
        manifest.layout == "compact" and len({d.rank for d in deltas.values()}) > 1
    )
    LoraConfig(**{key: value for key, value in config.items() if key != "peft_type"})


def test_the_portable_configuration() -> None:
    assert adapter_config(TEMPLATE, "me/base") == {
        "alpha_pattern": {},
        "base_model_name_or_path": "me/base",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 5,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "peft_version": TEMPLATE.versions["peft"],
        "r": 5,
        "rank_pattern": {},
        "revision": None,
        "target_modules": [f"model.layers.{layer}.mlp.down_proj" for layer in range(3)],
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
    }


def test_bf16_halves_the_factors_and_little_is_lost() -> None:
    pack = make_pack(tiny_model())
    manifest = replace(pack.manifest, layout="bf16")
    tensors = adapter_tensors(manifest, pack.deltas)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    for name, delta in read_deltas(manifest, tensors).items():
        exact = pack.deltas[name].dense()
        assert (delta.dense() - exact).norm() < 0.01 * exact.norm()


def test_canonical_form() -> None:
    delta = LowRankDelta(torch.randn(4, 9).double() * 1e6, torch.randn(9, 6).double() * 1e-6)
    form = canonical(delta)
    assert form.rank == 4 and form.B.dtype == torch.float32 and form.B.is_contiguous() and form.A.is_contiguous()
    assert torch.allclose(form.dense().double(), delta.dense(), rtol=1e-5, atol=1e-6)
    assert 0.1 < form.B.norm() / form.A.norm() < 10
    again = canonical(form)
    assert torch.equal(again.B, form.B) and torch.equal(again.A, form.A)


def tensors_of_a_pack() -> dict[str, torch.Tensor]:
    pack = make_pack(tiny_model())
    return adapter_tensors(pack.manifest, pack.deltas)


A, B = adapter_keys("model.layers.0.mlp.down_proj")  # of rank 1, padded to 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({A: None}, f"lacks tensor {A}"),
        ({"extra": torch.zeros(1)}, "extra tensor extra"),
        ({A: torch.zeros(5, 55)}, r"\(5, 55\) instead of .* \(5, 56\)"),
        ({A: torch.zeros(5, 56).half()}, "float16"),
        ({A: torch.ones(5, 56)}, "not zero beyond its declared rank 1"),
        ({B: torch.ones(32, 5)}, "not zero beyond its declared rank 1"),
    ],
)
def test_other_tensors_than_declared_are_refused(changes: dict, message: str) -> None:
    tensors = {name: tensor for name, tensor in (tensors_of_a_pack() | changes).items() if tensor is not None}
    with pytest.raises(PackError, match=message):
        read_deltas(TEMPLATE, tensors)
