"""The view on a model, against plain forwards, plain hooks and weights really changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_edit.errors import ComputationError, UnsupportedModelError
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.solvers.low_rank import LowRankDelta
from tests.packs.make import make_pack
from tests.snapshots import changed, snapshot
from tests.tiny import FAMILIES, VOCAB, tiny_model


# PEFT asks transformers for the name that transformers has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

IDS = torch.arange(2, 62).reshape(2, 30) * 37 % VOCAB  # longer than the sliding windows of 12
ROUNDING = {"gemma2": 1e-6, "gptj": 1e-6}
"""Families whose attention rounds to fp32 even in a float64 model; the others are held to 1e-10."""


def exact_view(family: str) -> EditableModel:
    """A float64 model, so that only real differences show."""
    return EditableModel.of(tiny_model(family, dtype=torch.float64))


@torch.no_grad()
def plain_logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def close(found: Tensor, expected: Tensor, family: str = "llama") -> bool:
    tolerance = ROUNDING.get(family, 1e-10)
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance)


def random_delta(view: EditableModel, layer: int, rank: int, dtype: torch.dtype = torch.float64) -> LowRankDelta:
    generator = torch.Generator().manual_seed(layer)
    linear = view.linears[layer]
    B, A = (torch.randn(*shape, generator=generator) for shape in ((linear.d_out, rank), (rank, linear.d_in)))
    return LowRankDelta(B, A).to(dtype=dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_linears(family: str) -> None:
    view = exact_view(family)
    assert view.n_layers == 4 and view.hidden_size == 32 and view.max_length == 256
    for layer, linear in enumerate(view.linears):
        assert (linear.layer, linear.d_out, linear.d_in) == (layer, 32, 56)
        module = view.model.get_submodule(linear.name)
        assert linear.module is module
        assert linear.transposed == isinstance(module, Conv1D) == (family == "gpt2")


@pytest.mark.parametrize("first", [0, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_from_cached_states_are_those_of_the_whole_forward(family: str, first: int) -> None:
    view = exact_view(family)
    states = view.trace(IDS, entering=[first]).entering
    with torch.no_grad():
        assert close(view.logits(IDS, start=states), plain_logits(view.model), family)


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_in_pieces_is_the_whole(family: str, first: int) -> None:
    """Pieces shorter and longer than the sliding window, one of a single token."""
    view = exact_view(family)
    states = view.trace(IDS, entering=[first]).entering[first]
    expected = plain_logits(view.model)
    prefix, at = view.no_prefix(first), 0
    for length in (7, 1, 15, 7):
        piece = slice(at, at + length)
        start = {first: states[:, piece]}
        with torch.no_grad():
            found = view.logits(IDS[:, piece], start=start, prefix=prefix)
        assert close(found, expected[:, piece], family)
        prefix = view.extended(prefix, IDS[:, piece], start=start)
        at += length
        assert prefix.length == at
    assert at == IDS.shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_keeps_the_shifts_made_in_it(family: str) -> None:
    view = exact_view(family)
    linear = view.linears[1]
    states = view.trace(IDS, entering=[1]).entering[1]
    shift = torch.zeros(2, 30, 32, dtype=torch.float64)
    shift[:, 4] = torch.linspace(-3, 3, 32)
    with torch.no_grad():
        whole = view.logits(IDS, start={1: states}, shift=(linear, shift))
    begin, end = slice(0, 9), slice(9, 30)
    start = {1: states[:, begin]}
    prefix = view.extended(view.no_prefix(1), IDS[:, begin], start=start, shift=(linear, shift[:, begin]))
    with torch.no_grad():
        found = view.logits(IDS[:, end], start={1: states[:, end]}, prefix=prefix)
    assert close(found, whole[:, end], family)
    assert (whole[:, end] - plain_logits(view.model)[:, end]).abs().max() > 1e-3  # the shift does reach later tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_is_what_plain_hooks_see(family: str) -> None:
    view = exact_view(family)
    mask = torch.ones_like(IDS)
    mask[1, 20:] = 0
    seen: dict[str, Tensor] = {}

    def keeping(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Any) -> None:
            inputs = args[0] if args else kwargs["hidden_states"]
            seen[f"into {name}"] = inputs.reshape(2, 30, -1)
            seen[f"out of {name}"] = (output[0] if isinstance(output, tuple) else output).reshape(2, 30, -1)

        return keep

    handles = [
        module.register_forward_hook(keeping(f"{kind} {layer}"), with_kwargs=True)
        for kind, modules in (("linear", [x.module for x in view.linears]), ("block", view.blocks))
        for layer, module in enumerate(modules)
    ]
    with torch.no_grad():
        view.model(input_ids=IDS, attention_mask=mask)
    for handle in handles:
        handle.remove()

    trace = view.trace(IDS, mask, inputs=view.linears[:3], outputs=view.linears[1:3], entering=[0, 2], leaving=[1])
    for layer in range(3):
        assert torch.equal(trace.inputs[view.linears[layer].name], seen[f"into linear {layer}"])
    for layer in (1, 2):
        assert torch.equal(trace.outputs[view.linears[layer].name], seen[f"out of linear {layer}"])
    for layer in (0, 2):
        assert torch.equal(trace.entering[layer], seen[f"into block {layer}"])
    assert torch.equal(trace.leaving[1], seen["out of block 1"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_may_begin_at_a_block(family: str) -> None:
    view = exact_view(family)
    whole = view.trace(IDS, inputs=view.linears, leaving=[3], entering=[2])
    part = view.trace(IDS, inputs=view.linears[2:], leaving=[3], start=whole.entering)
    assert close(part.leaving[3], whole.leaving[3])
    for linear in view.linears[2:]:
        assert close(part.inputs[linear.name], whole.inputs[linear.name])


def test_only_the_blocks_needed_run() -> None:
    view = exact_view("llama")
    states = view.trace(IDS, entering=[1]).entering
    ran: list[int] = []
    for layer, linear in enumerate(view.linears):
        linear.module.register_forward_hook(lambda *_, at=layer: ran.append(at))
    view.trace(IDS, leaving=[2], start=states)
    assert ran == [1, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_whether_outputs_reach_the_residual_stream_unchanged(family: str) -> None:
    assert exact_view(family).writes_residual == (family not in ("gemma2", "gemma3_text"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_that_is_found_in_every_precision(family: str, dtype: torch.dtype) -> None:
    view = EditableModel.of(tiny_model(family, dtype=dtype))
    assert view.writes_residual == (family not in ("gemma2", "gemma3_text"))


@pytest.mark.parametrize("family", FAMILIES)
def test_updated_is_the_dense_delta_in_the_weight(family: str) -> None:
    view = exact_view(family)
    deltas = {view.linears[layer].name: random_delta(view, layer, rank) for layer, rank in ((0, 1), (2, 3))}
    changed_model = copy.deepcopy(view.model)
    for name, delta in deltas.items():
        weight = changed_model.get_submodule(name).weight
        weight.data += delta.dense().T if family == "gpt2" else delta.dense()
    with view.updated(deltas):
        found = plain_logits(view.model)
    assert close(found, plain_logits(changed_model))
    assert (found - plain_logits(view.model)).abs().max() > 0.1


def test_a_shift_can_be_differentiated_whatever_the_callers_mode() -> None:
    model = tiny_model("gpt2", dtype=torch.float64)  # no part of it rounds to fp32
    view = EditableModel.of(model)

    def loss(shift: Tensor) -> Tensor:
        return view.logits(IDS, shift=(view.linears[2], shift)).square().mean()

    with torch.no_grad(), borrowed(model):
        shift = torch.zeros(2, 30, 32, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(shift), [shift])
        direction = torch.randn(2, 30, 32, dtype=torch.float64)
        step = 1e-6
        slope = (loss(shift + step * direction) - loss(shift - step * direction)) / (2 * step)
    assert slope.item() == pytest.approx(float((gradient * direction).sum()), rel=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_in_the_model(family: str) -> None:
    model = tiny_model(family).train()
    model.get_submodule("lm_head" if hasattr(model, "lm_head") else "embed_out").weight.requires_grad_(False)
    before = snapshot(model)
    view = EditableModel.of(model)
    states = view.trace(IDS, entering=[1], inputs=view.linears, leaving=[2]).entering
    view.extended(view.no_prefix(1), IDS, start=states)
    with view.updated({view.linears[1].name: random_delta(view, 1, 2, torch.float32)}), torch.no_grad():
        view.logits(IDS)
    _ = view.writes_residual
    assert changed(before, snapshot(model)) in ([], ["random"])  # dropout draws outside of `borrowed`


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_when_interrupted(error: type[BaseException]) -> None:
    model = tiny_model()
    view = EditableModel.of(model)

    def interrupt(*_: object) -> None:
        raise error

    states = view.trace(IDS, entering=[1]).entering
    view.blocks[2].register_forward_hook(interrupt)
    before = snapshot(model)
    with pytest.raises(error):
        view.trace(IDS, inputs=view.linears, outputs=view.linears, leaving=[2])
    with pytest.raises(error), view.updated({view.linears[1].name: random_delta(view, 1, 2, torch.float32)}):
        view.logits(IDS, start=states, shift=(view.linears[1], torch.ones(2, 30, 32)))
    with pytest.raises(error):
        EditableModel.of(model)
    assert changed(before, snapshot(model)) == []


def test_a_forward_replaced_on_the_instance_is_used_and_comes_back() -> None:
    """accelerate wraps forwards so to move modules between devices."""
    model = tiny_model(dtype=torch.float64)
    expected = plain_logits(model)
    block, calls = model.model.layers[1], []
    own = block.forward

    def wrapped(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return own(*args, **kwargs)

    block.forward = wrapped
    view = EditableModel.of(model)
    states = view.trace(IDS, entering=[2]).entering
    ran = len(calls)
    with torch.no_grad():
        assert close(view.logits(IDS, start=states), expected)
    assert len(calls) == ran  # passed through
    assert vars(block)["forward"] is wrapped


def with_user_lora(model: PreTrainedModel) -> nn.Module:
    torch.manual_seed(1)
    lora = LoraConfig(r=3, target_modules=["down_proj", "q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, lora)


def test_inside_a_users_adapter() -> None:
    """Names carry no wrapper, and everything is computed with the adapter in place."""
    plain = exact_view("llama")
    wrapped = with_user_lora(tiny_model(dtype=torch.float64)).double().eval()
    view = EditableModel.of(wrapped)
    assert [(x.name, x.d_out, x.d_in) for x in view.linears] == [(x.name, x.d_out, x.d_in) for x in plain.linears]

    expected = plain_logits(wrapped)
    assert (expected - plain_logits(plain.model)).abs().max() > 1e-3
    trace = view.trace(IDS, entering=[2], leaving=[1], outputs=view.linears[1:2])
    assert close(trace.leaving[1], trace.entering[2])
    delta = random_delta(view, 2, 2)
    with torch.no_grad():
        assert close(view.logits(IDS, start={2: trace.entering[2]}), expected)
        with view.updated({view.linears[2].name: delta}):
            found = view.logits(IDS)
    wrapped.get_base_model().model.layers[2].mlp.down_proj.base_layer.weight.data += delta.dense()
    assert close(found, plain_logits(wrapped))


def test_ids_are_padded_on_the_right() -> None:
    ids, mask = exact_view("llama").ids([[5, 6, 7], [8]], pad=3)
    assert ids.tolist() == [[5, 6, 7], [8, 3, 3]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_what_is_no_transformers_model() -> None:
    with pytest.raises(UnsupportedModelError, match="Sequential"):
        EditableModel.of(nn.Sequential(nn.Linear(2, 2)))


def test_a_model_that_computes_no_numbers() -> None:
    model = tiny_model()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ComputationError, match="logits of LlamaForCausalLM are not finite"):
        EditableModel.of(model)


def test_a_block_that_text_does_not_run_through_is_named() -> None:
    """As cross-attention blocks of vision models without an image."""
    view = EditableModel.of(tiny_model())
    view.blocks[2].forward = lambda hidden_states, *_, **__: hidden_states  # type: ignore[method-assign]
    with pytest.raises(UnsupportedModelError, match=r"not run through model.layers.2.mlp.down_proj of Llama"):
        view.trace(IDS, inputs=[view.linears[2]])


def test_what_a_model_adds_to_in_place_is_kept_as_it_was() -> None:
    sizes = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model("falcon", **sizes, bos_token_id=1, eos_token_id=5)
    view = EditableModel.of(AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval())
    trace = view.trace(IDS, inputs=view.linears, outputs=view.linears)
    for linear in view.linears:
        expected = torch.nn.functional.linear(trace.inputs[linear.name], linear.module.weight, linear.module.bias)
        assert torch.allclose(trace.outputs[linear.name], expected)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_update_of_a_bfloat16_model_is_rounded_as_by_peft(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, dtype=torch.bfloat16)
    pack = make_pack(model)
    pack.save_pretrained(tmp_path / "pack")
    with torch.no_grad(), EditableModel.of(model).updated(pack.deltas):
        found = model(IDS).logits
    assert torch.equal(found, PeftModel.from_pretrained(model, tmp_path / "pack")(IDS).logits)


def test_virtual_tokens_are_refused() -> None:
    model = get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(UnsupportedModelError, match="virtual tokens"):
        EditableModel.of(model)
