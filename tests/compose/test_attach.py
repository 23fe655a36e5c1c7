"""Packs on live models: the same logits by every way of loading, and no trace after detaching."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import hf_edit
from hf_edit.compose.attach import attach, detach
from hf_edit.edits import Edit, EditSet
from hf_edit.errors import BaseMismatchError, ComposeError, ConfigError, PackError, UnsupportedModelError
from hf_edit.solvers.low_rank import LowRankDelta
from tests.packs.make import dense_logits, logits, make_pack, random_deltas
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer


TOLERANCE = 2e-5
USER_MODULES = ["model.layers.0.mlp.down_proj", "model.layers.3.self_attn.q_proj"]
"""One module that the packs of these tests change and one that they do not."""

# PEFT asks transformers for the name that transformers has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def picture(model: nn.Module) -> dict:
    """Everything of a model that a trace could be in: modules, flags, hooks, adapters, values."""
    parts = {}
    for name, module in model.named_modules():
        hooks = [len(v) for k, v in sorted(vars(module).items()) if k.endswith("_hooks") and hasattr(v, "__len__")]
        parts[name] = (type(module), id(module), module.training, hooks, sorted(vars(module)))
        if isinstance(module, BaseTunerLayer):
            parts[name] += (list(module.active_adapters), module.disable_adapters)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        parts[f"{name} tensor"] = (id(tensor), tensor.requires_grad, tensor.detach().float().numpy().tobytes())
    parts["configs"] = {name: id(config) for name, config in getattr(model, "peft_config", {}).items()}
    parts["flag"] = getattr(model, "_hf_peft_config_loaded", None)
    return parts


def with_user_lora(model: nn.Module, **options: object) -> nn.Module:
    """The model with a trainable adapter "mine" of the user's own that does something."""
    model.add_adapter(LoraConfig(r=4, target_modules=USER_MODULES, **options), "mine")
    fill_randomly(model, "mine")
    return model


def fill_randomly(model: nn.Module, name: str) -> None:
    torch.manual_seed(1)
    for parameter_name, parameter in model.named_parameters():
        if f".{name}." in parameter_name:
            nn.init.normal_(parameter, std=0.05)


def assert_same_weights(first: Path, second: Path) -> None:
    """Both folders hold the same tensors under the same names."""
    one, other = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_of_loading_equals_dense_weights(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path / "base")
    load = lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()  # noqa: E731
    base = load(tmp_path / "base")
    pack = make_pack(base)
    pack.save_pretrained(tmp_path / "pack")
    expected = dense_logits(base, pack.deltas)
    assert (expected - logits(base)).abs().max() > 0.1  # the edit does something

    plain = load(tmp_path / "base")
    plain.load_adapter(tmp_path / "pack")
    attached = load(tmp_path / "base")
    attach(attached, tmp_path / "pack")
    ways = {
        "load_adapter": plain,
        "PeftModel": PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "pack"),
        "AutoModel": load(tmp_path / "pack"),
        "attach": attached,
    }
    for way, model in ways.items():
        assert (logits(model) - expected).abs().max() <= TOLERANCE, way


@pytest.mark.slow
def test_every_way_of_loading_equals_dense_weights_on_a_real_model(
    embedded_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 exactly; in float32 as closely as the model computes at all, which is 1e-4 at logits of 30.

    Norms are computed in the model's dtype. They would round to float32, and two numbers that differ in float64's last
    digit may come out differently: on some processors one of the millions here does.
    """

    def norm(self: Any, states: torch.Tensor) -> torch.Tensor:
        return self.weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    ids = torch.randint(0, 49_000, (1, 48))
    load = lambda path, dtype: AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()  # noqa: E731
    base = load(embedded_base, torch.float32)
    pack = make_pack(base, deltas=random_deltas(base, (1, 40, 7), size=0.05))
    pack.save_pretrained(tmp_path)

    def plain(dtype: torch.dtype) -> nn.Module:
        model = load(embedded_base, dtype)
        model.load_adapter(tmp_path)
        return model

    def attached(dtype: torch.dtype) -> nn.Module:
        model = load(embedded_base, dtype)
        attach(model, pack)
        return model

    exact = dense_logits(load(embedded_base, torch.float64), pack.deltas, ids=ids)
    assert (exact - logits(base, ids)).abs().max() > 0.1
    for way in (plain, attached):
        assert (logits(way(torch.float64), ids) - exact).abs().max() <= 1e-9
    rough = 3 * (dense_logits(base, pack.deltas, ids=ids) - exact).abs().max()
    wrapped = lambda dtype: PeftModel.from_pretrained(load(embedded_base, dtype), tmp_path)  # noqa: E731
    for way in (plain, attached, wrapped, lambda dtype: load(tmp_path, dtype)):
        assert (logits(way(torch.float32), ids) - exact).abs().max() <= rough


@pytest.mark.parametrize("layout", ["compact", "bf16"])
def test_other_layouts_load_plainly(layout: str, tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    pack = make_pack(model)
    pack.save_pretrained(tmp_path / "pack", layout=layout)
    expected = dense_logits(model, pack.deltas)
    model.load_adapter(tmp_path / "pack")
    assert (logits(model) - expected).abs().max() <= (TOLERANCE if layout == "compact" else 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_attach_and_detach_leave_no_trace(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(family, dtype=dtype).train()
    pack = make_pack(model)
    before, state = picture(model), torch.get_rng_state()
    for cycle in range(100 if family in ("llama", "gpt2") else 3):
        name = attach(model, pack, verify=cycle == 0)
        detach(model, name)
    assert picture(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    model.save_pretrained(tmp_path / "after")
    tiny_model(family, dtype=dtype).save_pretrained(tmp_path / "untouched")
    assert_same_weights(tmp_path / "after", tmp_path / "untouched")


def test_attached_in_bf16_equals_load_adapter(tmp_path: Path) -> None:
    model, plain = tiny_model(dtype=torch.bfloat16), tiny_model(dtype=torch.bfloat16)
    pack = make_pack(model)
    pack.save_pretrained(tmp_path)
    attach(model, pack)
    plain.load_adapter(tmp_path)
    assert torch.equal(logits(model), logits(plain))


@pytest.mark.parametrize("training", [True, False])
def test_attach_turns_on_no_gradients_and_no_modes(training: bool) -> None:
    model = tiny_model().train(training)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    attach(model, make_pack(model), "edit")
    assert all(module.training is training for module in model.modules())
    now = {n.replace(".base_layer", "") for n, p in model.named_parameters() if p.requires_grad}
    assert now == trainable


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")  # of a second load_adapter
@pytest.mark.parametrize("family", FAMILIES)
def test_detach_takes_off_what_plain_load_adapter_put_on(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    before = logits(model)
    for seed in (0, 1):
        make_pack(tiny_model(family), seed=seed).save_pretrained(tmp_path / "pack")
        model.load_adapter(tmp_path / "pack", adapter_name=f"plain{seed}")
    detach(model, "plain0")
    detach(model, "plain1")
    assert torch.equal(logits(model), before)
    assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())
    assert not hasattr(model, "peft_config") and not model._hf_peft_config_loaded
    model.save_pretrained(tmp_path / "after")
    assert_same_weights(tmp_path / "after", tmp_path / "base")


def test_two_packs_add_up_and_come_off_in_any_order() -> None:
    model = tiny_model("qwen2")
    base = logits(model)
    first, second = make_pack(model, (1, 5, 3)), make_pack(model, (0, 2, 2, 1)[1:], seed=1)
    attach(model, first, "first")
    attach(model, second, "second")
    assert model.active_adapters() == ["first", "second"]
    assert (logits(model) - dense_logits(tiny_model("qwen2"), first.deltas, second.deltas)).abs().max() <= TOLERANCE
    detach(model, "first")
    assert (logits(model) - dense_logits(tiny_model("qwen2"), second.deltas)).abs().max() <= TOLERANCE
    detach(model, "second")
    assert torch.equal(logits(model), base)


def test_a_users_own_adapter_stays_untouched_and_active() -> None:
    model = with_user_lora(tiny_model())
    before, alone = picture(model), logits(model)
    pack = make_pack(model)
    attach(model, pack, "edit")
    assert model.active_adapters() == ["mine", "edit"]
    assert all(p.requires_grad == (".mine." in name) for name, p in model.named_parameters())
    merged = with_user_lora(tiny_model())
    for name, delta in pack.deltas.items():
        module = merged.get_submodule(name)
        (module.base_layer if isinstance(module, BaseTunerLayer) else module).weight.data += delta.dense()
    assert (logits(model) - logits(merged)).abs().max() <= TOLERANCE
    detach(model, "edit")
    assert picture(model) == before
    assert torch.equal(logits(model), alone)


def test_an_adapter_with_modules_to_save_stays_active() -> None:
    model = with_user_lora(tiny_model(), modules_to_save=["lm_head"])
    before, alone = picture(model), logits(model)
    attach(model, make_pack(model), "edit")
    detach(model, "edit")
    assert picture(model) == before
    assert torch.equal(logits(model), alone)
    with pytest.raises(ComposeError, match="modules_to_save"):
        detach(model, "mine")


def test_beside_an_adapter_of_another_kind() -> None:
    config = IA3Config(target_modules=USER_MODULES, feedforward_modules=USER_MODULES[:1])
    model = tiny_model()
    model.add_adapter(config, "scales")
    fill_randomly(model, "scales")
    before, alone = picture(model), logits(model)
    attach(model, make_pack(model), "edit")
    assert model.active_adapters() == ["scales", "edit"]
    assert (logits(model) - alone).abs().max() > 0.1
    detach(model, "edit")
    assert picture(model) == before
    assert torch.equal(logits(model), alone)
    host = get_peft_model(tiny_model(), config)
    with pytest.raises(ComposeError, match="type IA3"):
        attach(host, make_pack(tiny_model()), "edit")


def test_an_inactive_adapter_stays_inactive() -> None:
    model = with_user_lora(tiny_model())
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_adapter([])
    before = picture(model)
    pack = make_pack(model)
    attach(model, pack, "edit")
    assert (logits(model) - dense_logits(tiny_model(), pack.deltas)).abs().max() <= TOLERANCE
    detach(model, "edit")
    assert picture(model) == before


def test_plain_calls_work_on_an_attached_pack() -> None:
    model = with_user_lora(tiny_model())
    pack = make_pack(model)
    attach(model, pack, "edit")
    both = logits(model)
    model.disable_adapters()
    assert torch.equal(logits(model), logits(tiny_model()))
    model.enable_adapters()
    assert torch.equal(logits(model), both)
    model.set_adapter("edit")
    assert (logits(model) - dense_logits(tiny_model(), pack.deltas)).abs().max() <= TOLERANCE
    model.set_adapter(["mine", "edit"])
    assert torch.equal(logits(model), both)


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_what_save_pretrained_writes_of_an_attached_pack_is_the_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # PEFT asks the Hub for the base's config
    model = tiny_model()
    pack = make_pack(model)
    attach(model, pack, "edit")
    model.save_pretrained(tmp_path)
    written = load_file(tmp_path / "adapter_model.safetensors")
    expected = pack.adapter_state_dict()
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], expected[key]) for key in expected)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 5


def peft_model(model: nn.Module) -> PeftModel:
    host = get_peft_model(model, LoraConfig(r=4, target_modules=USER_MODULES), "mine")
    fill_randomly(host, "mine")
    return host


def test_on_a_peft_model() -> None:
    host = peft_model(tiny_model())
    before, alone = picture(host), logits(host)
    noted = (host.active_adapter, host.active_adapters, list(host.base_model.targeted_module_names))
    pack = make_pack(host.get_base_model())
    attach(host, pack, "edit")
    assert host.active_adapters == ["mine", "edit"]
    assert all(p.dtype == torch.float32 for name, p in host.named_parameters() if ".edit." in name)
    with host.disable_adapter():
        assert torch.equal(logits(host), logits(tiny_model()))
    host.base_model.set_adapter(["edit"], inference_mode=True)
    assert (logits(host) - dense_logits(tiny_model(), pack.deltas)).abs().max() <= TOLERANCE
    host.base_model.set_adapter("mine")
    detach(host, "edit")
    assert picture(host) == before
    assert noted == (host.active_adapter, host.active_adapters, host.base_model.targeted_module_names)
    assert torch.equal(logits(host), alone)


def test_the_only_adapter_of_a_peft_model_is_not_detached(tmp_path: Path) -> None:
    make_pack(tiny_model()).save_pretrained(tmp_path)
    host = PeftModel.from_pretrained(tiny_model(), tmp_path, adapter_name="edit")
    with pytest.raises(ComposeError, match="unload"):
        detach(host, "edit")
    assert torch.equal(logits(host.unload()), logits(tiny_model()))


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        (None, "capital"),
        ("qwen2.5-pack", "qwen2_5-pack"),
        ("ein Fäßchen", "ein_F_chen"),
        ("...", "hf_edit"),
        ("values", "hf_edit_values"),
        ("training", "hf_edit_training"),
        ("lora", "hf_edit_lora"),
    ],
)
def test_names(wish: str | None, name: str) -> None:
    model = tiny_model()
    before = picture(model)
    assert attach(model, make_pack(model), wish) == name
    assert name in model.peft_config
    detach(model, name)
    assert picture(model) == before


def wrong_base(model: nn.Module) -> None:
    model.model.layers[0].mlp.down_proj.weight.data[3, 5] += 1e-3


def other_shape(model: nn.Module) -> None:
    model.model.layers[0].mlp.down_proj = nn.Linear(20, 32, bias=False)


def no_module(model: nn.Module) -> None:
    del model.model.layers[0].mlp.down_proj


def no_linear(model: nn.Module) -> None:
    model.model.layers[0].mlp.down_proj = nn.Embedding(56, 32)


def offloaded(model: nn.Module) -> None:
    model.model.layers[0].mlp.down_proj.to("meta")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (wrong_base, "other values"),
        (other_shape, r"\(32, 20\)"),
        (no_module, "no module"),
        (no_linear, "not a linear"),
        (offloaded, "not in memory"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_and_left_alone(spoil, message: str) -> None:
    model, pack = tiny_model(), make_pack(tiny_model())
    spoil(model)
    before = picture(model) if spoil is not offloaded else None
    with pytest.raises(BaseMismatchError, match=message) as caught:
        attach(model, pack)
    assert caught.value.remedy
    assert not hasattr(model, "peft_config")
    assert before is None or picture(model) == before


def test_without_verification_another_base_is_taken() -> None:
    model, pack = tiny_model(), make_pack(tiny_model())
    wrong_base(model)
    attach(model, pack, verify=False)
    assert not torch.equal(logits(model), logits(tiny_model()))


def test_a_non_finite_delta_is_refused() -> None:
    model = tiny_model()
    pack = make_pack(model)
    next(iter(pack.deltas.values())).B[0, 0] = float("nan")
    with pytest.raises(PackError, match="NaN"):
        attach(model, pack, verify=False)
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["_inject", "_fill", "_settle"])
@pytest.mark.parametrize("host", ["plain", "with adapter", "PeftModel"])
def test_a_failure_half_way_leaves_the_model_as_it_was(
    host: str, place: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = __import__("hf_edit.compose.attach", fromlist=["attach"])
    step = getattr(module, place)

    def fail_after(*args: object) -> None:
        step(*args)
        raise error

    monkeypatch.setattr(module, place, fail_after)
    make = {"plain": lambda m: m, "with adapter": with_user_lora, "PeftModel": peft_model}[host]
    model = make(tiny_model().train())
    pack = make_pack(tiny_model())
    before, alone = picture(model), logits(model)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ComposeError):
        attach(model, pack, "edit")
    assert picture(model) == before
    assert torch.equal(logits(model), alone)


@pytest.mark.parametrize("place", ["_remove", "_unwrap", "_forget"])
def test_a_failing_detach_leaves_the_model_as_it_was(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__("hf_edit.compose.attach", fromlist=["attach"])
    model = with_user_lora(tiny_model())
    attach(model, make_pack(model), "edit")
    before, both = picture(model), logits(model)
    step = getattr(module, place)

    def fail_after(*args: object) -> None:
        step(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, place, fail_after)
    with pytest.raises(KeyboardInterrupt):
        detach(model, "edit")
    assert picture(model) == before
    assert torch.equal(logits(model), both)


def test_states_in_which_nothing_can_be_attached_or_detached() -> None:
    model = with_user_lora(tiny_model())
    pack = make_pack(model)
    with pytest.raises(ComposeError, match="already"):
        attach(model, pack, "mine")
    with pytest.raises(ComposeError, match="no adapter 'other'.*'mine'"):
        detach(model, "other")
    model.disable_adapters()
    with pytest.raises(ComposeError, match="enable_adapters"):
        attach(model, pack, "edit")
    model.enable_adapters()
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
    for refused in (lambda: attach(model, pack, "edit"), lambda: detach(model, "mine")):
        with pytest.raises(ComposeError, match="merged"):
            refused()
    with pytest.raises(UnsupportedModelError, match="Sequential"):
        attach(nn.Sequential(), pack)
    with pytest.raises(ComposeError, match="No adapter"):
        detach(tiny_model(), "edit")


def test_a_pack_counts_once() -> None:
    model, pack, tokenizer = tiny_model(), make_pack(tiny_model()), tiny_tokenizer()
    attach(model, pack, "edit")
    other = make_pack(tiny_model(), edits=EditSet([Edit("Why?", "So.", id="why")]))
    how = {"model": model, "tokenizer": tokenizer}
    for count_twice in (
        lambda: attach(model, pack, "again"),
        lambda: hf_edit.evaluate(model, tokenizer, pack),
        lambda: hf_edit.stack([other, pack], **how),
        lambda: hf_edit.polish(pack, **how),
        lambda: pack.revert("bridge", **how),
        lambda: hf_edit.audit(model, tokenizer, pack),
    ):
        with pytest.raises(ComposeError, match="attached to the model already, as 'edit'"):
            count_twice()
    attach(model, other)
    detach(model, "edit")
    attach(model, pack)


def test_a_pack_is_attached_at_a_strength_which_can_be_changed() -> None:
    model, pack = tiny_model(), make_pack(tiny_model())
    base = logits(model)

    def works_at(strength: float) -> bool:
        deltas = {name: LowRankDelta(delta.B * strength, delta.A) for name, delta in pack.deltas.items()}
        return bool((logits(model) - dense_logits(tiny_model(), deltas)).abs().max() <= TOLERANCE)

    for strength in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"strength is {strength}"):
            attach(model, pack, "edit", strength=strength)
    attach(model, pack, "edit", strength=0.5)
    assert works_at(0.5)
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_scale("edit", 0.8)
    assert works_at(0.8)
    model.disable_adapters()
    assert torch.equal(logits(model), base)
    model.enable_adapters()
    assert works_at(0.8)
    detach(model, "edit")
    assert torch.equal(logits(model), base)
