"""Output maps of experts that are fused into one parameter, as one linear map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_edit.errors import UnsupportedModelError
from hf_edit.models.editable import EditableModel
from hf_edit.models.experts import Experts
from hf_edit.models.orientation import as_matrix, as_stored
from hf_edit.solvers.low_rank import LowRankDelta
from tests.snapshots import changed, snapshot
from tests.tiny import VOCAB, tiny_model


IDS = torch.arange(2, 26).reshape(2, 12) * 37 % VOCAB
PARAMETERS = {
    "mixtral": "mlp.experts.down_proj",
    "gpt_oss": "mlp.experts.down_proj",  # (E, inputs, outputs), with biases
    "deepseek_v3": "mlp.experts.down_proj",  # no experts in the first block
    "jetmoe": "mlp.output_linear.weight",  # its module gives a row for each token and expert
}


def exact_model(family: str) -> PreTrainedModel:
    """In float64, which grouped products do not know."""
    model = tiny_model(family, dtype=torch.float64)
    model.set_experts_implementation("eager")
    for name, parameter in model.named_parameters():
        if name.endswith("down_proj_bias"):
            parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    return model


def exact_view(family: str) -> EditableModel:
    return EditableModel.of(exact_model(family), experts=True)


def delta_of(view: EditableModel, layer: int, rank: int = 3) -> LowRankDelta:
    generator = torch.Generator().manual_seed(layer)
    linear = view.linears[layer]
    B, A = (torch.randn(*shape, generator=generator) for shape in ((linear.d_out, rank), (rank, linear.d_in)))
    return LowRankDelta(B, 0.1 * A).to(torch.float64)


def experts_of(view: EditableModel, layer: int) -> Experts:
    experts = view.linears[layer].experts
    assert experts is not None
    return experts


@pytest.mark.parametrize("family", PARAMETERS)
def test_they_are_found_where_asked_for(family: str) -> None:
    view = exact_view(family)
    dense = 1 if family == "deepseek_v3" else 0
    for layer, linear in enumerate(view.linears[dense:], start=dense):
        assert linear.name == f"model.layers.{layer}.{PARAMETERS[family]}"
        weight = view.model.get_parameter(linear.name)
        assert linear.weight is weight
        assert linear.d_out == 32 and linear.d_out * linear.d_in == weight.numel()
        assert linear.transposed == (family == "gpt_oss")
    assert all(linear.experts is None for linear in view.linears[:dense])


@pytest.mark.parametrize("family", PARAMETERS)
def test_they_are_linear_in_what_is_read_as_their_input(family: str) -> None:
    view = exact_view(family)
    linear = view.linears[2]
    before = snapshot(view.model)
    trace = view.trace(IDS, inputs=[linear], outputs=[linear])
    assert changed(before, snapshot(view.model)) == []
    keys, experts = trace.inputs[linear.name], experts_of(view, 2)
    assert keys.shape == (2, 12, linear.d_in)
    of_experts = keys.unflatten(2, (4, -1)).any(dim=3)
    assert (of_experts.sum(dim=2) == 2).all()  # each token goes to two of four
    bias = torch.zeros(())
    if family == "gpt_oss":  # weighed by the mixture, which the keys do not tell
        zero = torch.zeros_like(linear.weight)
        with experts._holding(zero):
            bias = view.trace(IDS, outputs=[linear]).outputs[linear.name]
    found = keys @ as_matrix(linear.weight.detach(), experts.orientation).T + bias
    assert (found - trace.outputs[linear.name]).abs().max() < 1e-12


@pytest.mark.parametrize("family", PARAMETERS)
def test_the_side_path_is_the_dense_change(family: str) -> None:
    view = exact_view(family)
    linear, delta = view.linears[2], delta_of(view, 2)
    before = snapshot(view.model)
    with torch.no_grad(), view.updated({linear.name: delta}):
        beside = view.logits(IDS)
        with view.updated({linear.name: LowRankDelta(-delta.B, delta.A)}):
            undone = view.logits(IDS)
        keys = view.trace(IDS, inputs=[linear]).inputs[linear.name]
    assert changed(before, snapshot(view.model)) == []
    plain = view.trace(IDS, inputs=[linear]).inputs[linear.name]
    assert torch.equal(keys, plain)  # what enters the map does not depend on its own change
    with torch.no_grad():
        base = view.logits(IDS)
        linear.weight.add_(as_stored(delta.dense(), experts_of(view, 2).orientation, linear.weight.shape))
        dense = view.logits(IDS)
    assert (dense - base).abs().max() > 1e-2
    assert (beside - dense).abs().max() <= 1e-9 * dense.abs().max()
    assert (undone - base).abs().max() <= 1e-9 * dense.abs().max()


def test_a_change_beside_them_is_differentiable() -> None:
    view = exact_view("mixtral")
    linear, delta = view.linears[1], delta_of(view, 1)
    B = delta.B.clone().requires_grad_()
    with view.updated({linear.name: LowRankDelta(B, delta.A)}):
        loss = view.logits(IDS).logsumexp(dim=-1).mean()
    loss.backward()
    step = 1e-6 * torch.randn(B.shape, generator=torch.Generator().manual_seed(3), dtype=B.dtype)
    values = []
    for moved in (delta.B + step, delta.B - step):
        with torch.no_grad(), view.updated({linear.name: LowRankDelta(moved, delta.A)}):
            values.append(view.logits(IDS).logsumexp(dim=-1).mean())
    assert B.grad is not None
    assert torch.isclose((values[0] - values[1]) / 2, (B.grad * step).sum(), rtol=1e-4)


def test_an_interrupt_inside_leaves_no_change() -> None:
    view = exact_view("mixtral")
    before = snapshot(view.model)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), view.updated({view.linears[2].name: delta_of(view, 2)}):
        experts_of(view, 2).holder.act_fn.register_forward_hook(interrupt)
        view.logits(IDS)
    experts_of(view, 2).holder.act_fn._forward_hooks.clear()
    assert changed(before, snapshot(view.model)) == []


def test_by_default_a_map_beside_them_is_edited_and_they_are_known_by_name() -> None:
    view = EditableModel.of(tiny_model("mixtral"))
    name = "model.layers.2.mlp.experts.down_proj"
    assert view.linears[2].name == "model.layers.2.self_attn.o_proj"
    found = view.linears_named([name, "model.layers.1.self_attn.o_proj"])
    assert [linear.name for linear in found] == ["model.layers.1.self_attn.o_proj", name]
    with torch.no_grad(), view.updated({name: LowRankDelta(torch.ones(32, 1), torch.ones(1, 4 * 56))}):
        moved = view.logits(IDS)
    assert (moved - view.logits(IDS)).abs().max() > 1e-3


def test_they_are_edited_by_default_where_there_is_nothing_else() -> None:
    assert EditableModel.of(tiny_model("jetmoe")).linears[2].name == "model.layers.2.mlp.output_linear.weight"


def test_a_model_without_them_says_so() -> None:
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM has no experts fused into one parameter"):
        EditableModel.of(tiny_model(), experts=True)


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU()])
def test_a_map_before_an_activation_is_none(activation: nn.Module) -> None:
    """As wide as the stream and homogeneous, so that shapes and scaling alone do not tell."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.up = nn.Parameter(torch.randn(2, 8, 8, generator=generator))
            self.down = nn.Parameter(torch.randn(2, 8, 8, generator=generator))

        def forward(self, x: Tensor) -> Tensor:
            return sum(activation(x @ self.up[e].T) @ self.down[e].T for e in range(2))

    gate, x = Gate(), torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert Experts(gate, "down", gate).is_output_map((x,), {}, 5)
        assert not Experts(gate, "up", gate).is_output_map((x,), {}, 5)
