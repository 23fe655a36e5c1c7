"""The view on one block: its linear maps, its outputs, and what may be put in their place."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.models.trace import Trace
from hf_edit.solvers.low_rank import LowRankDelta
from tests.snapshots import changed, snapshot
from tests.tiny import FAMILIES, VOCAB, tiny_model


# PEFT asks transformers for the name that transformers has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

IDS = torch.arange(2, 62).reshape(2, 30) * 37 % VOCAB  # longer than the sliding windows of 12
LLAMA = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
LLAMA += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
MAPS = {
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "gptj": [f"attn.{x}_proj" for x in ("k", "v", "q", "out")] + ["mlp.fc_in", "mlp.fc_out"],
    "gpt_neox": ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
    "opt": [f"self_attn.{x}_proj" for x in ("k", "v", "q", "out")] + ["fc1", "fc2"],
    "phi3": ["self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"],
}


def exact_view(family: str) -> EditableModel:
    return EditableModel.of(tiny_model(family, dtype=torch.float64))


def dense_changes(view: EditableModel, layer: int) -> dict[str, Tensor]:
    return {x.name: 0.1 * torch.randn(x.d_out, x.d_in, dtype=torch.float64) for x in view.block_linears(layer)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_blocks_linear_maps(family: str) -> None:
    view = exact_view(family)
    found = view.block_linears(1)
    start = f"{view.family.blocks}.1."
    assert sorted(x.name.removeprefix(start) for x in found) == sorted(MAPS.get(family, LLAMA))
    assert view.linears[1] in found
    for linear in found:
        shape = (linear.d_in, linear.d_out) if linear.transposed else (linear.d_out, linear.d_in)
        assert view.model.get_submodule(linear.name).weight.shape == shape


def test_a_blocks_linear_maps_inside_a_users_adapter() -> None:
    plain = EditableModel.of(tiny_model())
    config = LoraConfig(r=3, target_modules=["down_proj", "q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    view = EditableModel.of(get_peft_model(tiny_model(), config))
    assert [(x.name, x.d_out, x.d_in) for x in view.block_linears(2)] == [
        (x.name, x.d_out, x.d_in) for x in plain.block_linears(2)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_blocks_outputs_are_those_of_the_whole_forward(family: str) -> None:
    view = exact_view(family)
    trace = view.trace(IDS, entering=[2], leaving=[2])
    found = view.block_outputs(2, IDS, trace.entering[2])
    assert (found - trace.leaving[2]).abs().max() <= 1e-10
    # a shorter text is the same beside a longer one
    alone = view.block_outputs(2, IDS[1:, :11], trace.entering[2][1:, :11])
    assert (found[1:, :11] - alone).abs().max() <= 1e-6

    shift = torch.randn(2, 30, 32, dtype=torch.float64)
    shifted = view.block_outputs(2, IDS, trace.entering[2], shift=(view.linears[2], shift))
    if view.writes_residual:
        assert (shifted - found - shift).abs().max() <= 1e-6
    else:
        assert (shifted - found).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_changes_of_every_map_as_if_in_the_weights(family: str) -> None:
    """As dense matrices and as factors."""
    view = exact_view(family)
    dense = dense_changes(view, 2)
    entering = view.trace(IDS, entering=[2]).entering[2]
    factors = {name: LowRankDelta(dW, torch.eye(dW.shape[1], dtype=dW.dtype)) for name, dW in dense.items()}
    with torch.no_grad():
        found = []
        for changes in (dense, factors):
            with view.updated(changes):
                found.append(view.block_outputs(2, IDS, entering))
        for linear in view.block_linears(2):
            weight = linear.module.weight
            weight += dense[linear.name].T if linear.transposed else dense[linear.name]  # type: ignore[operator]
        expected = view.trace(IDS, leaving=[2]).leaving[2]
    tolerance = 1e-6 if family in ("gemma2", "gptj") else 1e-10  # attention that rounds to fp32
    for outputs in found:
        assert (outputs - expected).abs().max() <= tolerance


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_gradients_reach_the_changes_and_nothing_else(family: str) -> None:
    view = exact_view(family)
    changes = dense_changes(view, 1)
    entering = view.trace(IDS, entering=[1]).entering[1]
    with borrowed(view.model):
        for change in changes.values():
            change.requires_grad_()
        with view.updated(changes):
            view.block_outputs(1, IDS, entering).square().sum().backward()
    assert all(change.grad is not None and change.grad.abs().max() > 0 for change in changes.values())
    assert all(parameter.grad is None for parameter in view.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_values_of_a_trace_take_the_place_of_others(family: str) -> None:
    """One layer's clean state put back everywhere gives the clean logits; put back at one token, its own."""
    view = exact_view(family)
    noise = torch.randn(3, 30, 32, dtype=torch.float64)
    ids, row = IDS[:1].expand(3, 30), IDS[:1]
    clean = view.trace(row, outputs=view.linears, leaving=[1])
    with torch.no_grad():
        expected = view.logits(row)
        with view.embeddings_shifted(noise):
            assert (view.logits(ids) - expected).abs().max() > 1e-3
            with view.replaced(Trace(leaving=clean.leaving), torch.ones(3, 30, dtype=torch.bool)):
                assert (view.logits(ids) - expected).abs().max() <= 1e-6

        where = torch.zeros(3, 30, dtype=torch.bool)
        where[1, 4] = True
        name = view.linears[2].name
        with view.embeddings_shifted(noise):
            before = view.trace(ids, outputs=[view.linears[2]]).outputs[name]
            with view.replaced(Trace(outputs={name: clean.outputs[name]}), where):
                after = view.trace(ids, outputs=[view.linears[2]]).outputs[name]
    assert torch.equal(after[1, 4], clean.outputs[name][0, 4])
    assert torch.equal(after[~where], before[~where])


def test_noise_reaches_the_first_block() -> None:
    view = exact_view("llama")
    noise = torch.zeros(2, 30, 32, dtype=torch.float64)
    noise[0, 3] = 1
    plain = view.trace(IDS, entering=[0]).entering[0]
    with view.embeddings_shifted(noise):
        shifted = view.trace(IDS, entering=[0]).entering[0]
    assert torch.equal(shifted, plain + noise)


def test_nothing_is_left_in_the_model() -> None:
    model = tiny_model()
    view = EditableModel.of(model)
    before = snapshot(model)
    trace = view.trace(IDS, entering=[1], outputs=view.linears, leaving=[2])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = view.blocks[2].register_forward_hook(interrupt)
    one = Trace(leaving={2: trace.leaving[2][:1]})
    with (
        pytest.raises(KeyboardInterrupt),
        view.embeddings_shifted(torch.zeros(2, 30, 32)),
        view.replaced(one, torch.ones_like(IDS).bool()),
    ):
        view.block_outputs(2, IDS, trace.entering[1])
    handle.remove()
    assert changed(before, snapshot(model)) == []
