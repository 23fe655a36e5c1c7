"""Packs merged into weights, and taken out again bit for bit."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from hf_edit.compose.attach import attach, detach
from hf_edit.compose.merge import merge, unmerge
from hf_edit.compose.merge_report import merge_report
from hf_edit.compose.merged import remembered
from hf_edit.compose.receipt import MergeReceipt
from hf_edit.edits import Edit, EditSet
from hf_edit.errors import (
    BaseMismatchError,
    ComposeError,
    ComputationError,
    ConfigError,
    HfEditError,
    HfEditWarning,
    PackError,
    UnsupportedModelError,
)
from hf_edit.packs.pack import EditPack
from tests.compose.test_attach import (
    TOLERANCE,
    assert_same_weights,
    peft_model,
    picture,
    with_user_lora,
)
from tests.packs.make import dense_logits, logits, make_pack, random_deltas
from tests.tiny import FAMILIES, tiny_model


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KEYS = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(3)]

# PEFT asks transformers for the name that transformers has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def other_pack(model: nn.Module, ranks: tuple[int, ...] = (2, 2)) -> EditPack:
    """A pack of other edits that shares two modules with `make_pack`'s."""
    edits = EditSet([Edit("Where is Mount Orrin?", "In the north.", id="orrin")])
    return make_pack(model, deltas=random_deltas(model, ranks, seed=5), edits=edits, seed=5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_equals_dense_weights_and_writes_the_bases_own_keys(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    pack = make_pack(model)
    before, expected = picture(model), dense_logits(model, pack.deltas)
    assert (expected - logits(model)).abs().max() > 0.1
    receipt = merge(model, pack)
    assert (logits(model) - expected).abs().max() <= TOLERANCE
    model.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(again), logits(model))

    unmerge(model, receipt)
    assert picture(model) == before
    model.save_pretrained(tmp_path / "after")
    tiny_model(family).save_pretrained(tmp_path / "untouched")
    assert_same_weights(tmp_path / "after", tmp_path / "untouched")
    assert not (tmp_path / "after" / "merge_receipt").exists()


@pytest.mark.parametrize(("rounding", "size"), [("nearest", 0.3), ("compensated", 0.01)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_unmerging_gives_back_every_bit(
    family: str, dtype: torch.dtype, rounding: str, size: float, tmp_path: Path
) -> None:
    model = tiny_model(family, dtype=dtype).train()
    pack = make_pack(model, deltas=random_deltas(model, (1, 5, 3), size))
    before, state = picture(model), torch.get_rng_state()
    attach(model, pack, "edit")
    receipt = merge(model, "edit", rounding=rounding)
    assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())
    assert picture(model) != before
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    unmerge(loaded, tmp_path)
    unmerge(model, receipt)
    assert picture(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert same_tensors(loaded, tiny_model(family, dtype=dtype))


def same_tensors(first: nn.Module, second: nn.Module) -> bool:
    """Whether two models have equal weights. Their logits may differ: casting a model casts its frequencies too."""
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_in_another_process(tmp_path: Path) -> None:
    for dtype in DTYPES:
        folder, model = tmp_path / str(dtype), tiny_model(dtype=dtype)
        merge(model, make_pack(model))
        model.save_pretrained(folder / "merged")
        tiny_model(dtype=dtype).save_pretrained(folder / "untouched")
    code = """
        import sys, hf_edit
        from transformers import AutoModelForCausalLM
        for folder in sys.argv[1:]:
            model = AutoModelForCausalLM.from_pretrained(f"{folder}/merged")
            hf_edit.unmerge(model, f"{folder}/merged")
            model.save_pretrained(f"{folder}/base")
    """
    folders = [tmp_path / str(dtype) for dtype in DTYPES]
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), *folders], check=True)
    for folder in folders:
        assert_same_weights(folder / "base", folder / "untouched")


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_rounding_of_several_packs(dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    first, second = make_pack(model), other_pack(model)
    attach(model, second, "second")
    receipt = merge(model, [first, "second"])
    expected = tiny_model(dtype=dtype)
    for name in first.deltas:
        weight = expected.get_submodule(name).weight
        # of an adapter that is only known by name, the factors are those that it computes with
        changes = [first.deltas[name].to(torch.float64).dense()]
        changes += [second.deltas[name].to(dtype).to(torch.float64).dense()] if name in second.deltas else []
        weight.data = (weight.double() + sum(changes)).to(dtype)
        assert (model.get_submodule(name).weight == weight).double().mean() > 0.99
    assert torch.allclose(logits(model), logits(expected), atol=TOLERANCE if dtype == torch.float32 else 0.05)
    assert [pack.adapter for pack in receipt.merges[0].packs] == [None, "second"]


def test_a_pack_that_is_attached_is_not_added_twice() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    pack = make_pack(model)
    plain = tiny_model(dtype=torch.bfloat16)
    merge(plain, pack)
    attach(model, pack, "edit")
    receipt = merge(model, pack)
    assert not hasattr(model, "peft_config")
    assert torch.equal(logits(model), logits(plain))
    assert receipt.merges[0].packs[0].adapter == "edit"
    assert [edit["id"] for edit in receipt.merges[0].packs[0].edits] == ["capital", "bridge"]


def test_a_pack_merged_by_the_name_of_its_adapter_is_known_again() -> None:
    model, pack = tiny_model(), make_pack(tiny_model())
    attach(model, pack, "edit")
    receipt = merge(model, "edit")
    assert [edit["id"] for edit in receipt.merges[0].packs[0].edits] == ["capital", "bridge"]
    with pytest.raises(ComposeError, match="merged into the model already"):
        merge(model, pack)


def test_a_merge_that_rounds_away_is_forgotten_when_it_is_undone() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    pack = make_pack(model, deltas=random_deltas(model, (1, 2), size=1e-7))
    with pytest.warns(HfEditWarning, match="survives rounding"):
        receipt = merge(model, pack)
    unmerge(model, receipt)
    assert "save_pretrained" not in vars(model) and not remembered(model)


def test_advice_made_an_error_undoes_the_merge() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    before, pack = picture(model), make_pack(model, deltas=random_deltas(model, (1, 2), size=1e-4))
    with pytest.raises(HfEditWarning, match="survives rounding"):
        merge(model, pack)
    assert picture(model) == before


def test_an_adapter_is_merged_at_its_strength() -> None:
    model = tiny_model()
    pack = make_pack(model)
    attach(model, pack, "edit")
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_scale("edit", 0.5)
    half = logits(model)
    merge(model, "edit")
    assert (logits(model) - half).abs().max() <= TOLERANCE
    assert (half - dense_logits(tiny_model(), pack.deltas)).abs().max() > 0.1


def test_a_sparse_adapter_is_merged() -> None:
    model = tiny_model("gpt2")
    deltas = random_deltas(model, (3,))
    for delta in deltas.values():
        delta.A.zero_()
        delta.A[torch.arange(3), torch.tensor([4, 9, 30])] = 1.0
    pack = make_pack(model, deltas=deltas)
    before, expected = picture(model), dense_logits(model, pack.deltas)
    attach(model, replace(pack, manifest=replace(pack.manifest, layout="sparse")), "edit")
    receipt = merge(model, "edit")
    assert (logits(model) - expected).abs().max() <= TOLERANCE
    unmerge(model, receipt)
    assert picture(model) == before


@pytest.mark.parametrize("training", [True, False])
def test_beside_a_users_own_adapter(training: bool) -> None:
    model = with_user_lora(tiny_model().train(training))
    before, alone = picture(model), logits(model)
    pack = make_pack(model)
    attach(model, pack, "edit")
    both = logits(model)
    receipt = merge(model, "edit")
    assert model.active_adapters() == ["mine"]
    assert all(parameter.requires_grad == (".mine." in name) for name, parameter in model.named_parameters())
    assert (logits(model) - both).abs().max() <= TOLERANCE
    detached = copy.deepcopy(model)
    detach(detached, "mine")
    assert (logits(detached) - dense_logits(tiny_model(), pack.deltas)).abs().max() <= TOLERANCE
    unmerge(model, receipt)
    assert picture(model) == before
    assert torch.equal(logits(model), alone)


@pytest.mark.parametrize("attached", [True, False])
def test_on_a_peft_model(attached: bool) -> None:
    host = peft_model(tiny_model())
    before, alone = picture(host), logits(host)
    pack = make_pack(tiny_model())
    attach(host, pack, "edit")
    both = logits(host)
    if not attached:
        host.base_model.set_adapter("mine")
        detach(host, "edit")
    receipt = merge(host, "edit" if attached else pack)
    assert host.active_adapters == ["mine"]
    assert (logits(host) - both).abs().max() <= TOLERANCE
    unmerge(host, receipt)
    assert picture(host) == before
    assert torch.equal(logits(host), alone)


def test_the_only_adapter_of_a_peft_model_stays(tmp_path: Path) -> None:
    make_pack(tiny_model()).save_pretrained(tmp_path)
    host = PeftModel.from_pretrained(tiny_model(), tmp_path, adapter_name="edit")
    before = picture(host)
    with pytest.raises(ComposeError, match="unload"):
        merge(host, "edit")
    assert picture(host) == before


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_pack_after_the_other(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(dtype=dtype)
    first, second = make_pack(model), other_pack(model)
    pictures = [picture(model)]
    receipts = []
    for pack in (first, second):
        receipts.append(merge(model, pack))
        pictures.append(picture(model))
    with pytest.raises(ComposeError, match="merged into the model already"):
        merge(model, first)
    model.save_pretrained(tmp_path)
    with pytest.raises(BaseMismatchError, match="layers.0.*not what the merge left"):
        unmerge(model, receipts[0])
    assert picture(model) == pictures[2]
    unmerge(model, receipts[1])
    assert differing(picture(model), pictures[1]) == []
    unmerge(model, receipts[0])
    assert picture(model) == pictures[0]

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(MergeReceipt.load(tmp_path).merges) == 2
    unmerge(loaded, tmp_path)
    assert same_tensors(loaded, tiny_model(dtype=dtype))


def differing(first: dict, second: dict) -> list[str]:
    return [key for key in first.keys() | second.keys() if first.get(key) != second.get(key)]


def test_packs_that_share_no_weight_come_out_in_any_order() -> None:
    model = tiny_model()
    before = picture(model)
    deltas = random_deltas(model, (1, 2, 3, 4))
    names = list(deltas)
    halves = [make_pack(model, deltas={name: deltas[name] for name in half}) for half in (names[:2], names[2:])]
    halves[1] = other = replace(halves[1], manifest=replace(halves[1].manifest, seed=9))
    receipts = [merge(model, halves[0]), merge(model, other)]
    unmerge(model, receipts[0])
    assert (logits(model) - dense_logits(tiny_model(), other.deltas)).abs().max() <= TOLERANCE
    unmerge(model, receipts[1])
    assert picture(model) == before


def test_a_second_pack_onto_a_model_merged_in_another_process(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.bfloat16)
    first, second = make_pack(model), other_pack(tiny_model())  # computed on the base in another dtype
    merge(model, first)
    model.save_pretrained(tmp_path / "one")
    merge(model, second)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    with pytest.raises(BaseMismatchError):
        merge(loaded, second)
    with pytest.raises(ComposeError, match="already"):
        merge(loaded, first, onto=tmp_path / "one")
    merge(loaded, second, onto=tmp_path / "one")
    assert same_tensors(loaded, model)
    loaded.save_pretrained(tmp_path / "both")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "both")
    unmerge(again, tmp_path / "both")
    assert same_tensors(again, tiny_model(dtype=torch.bfloat16))


def test_onto_the_wrong_model_or_base(tmp_path: Path) -> None:
    model = tiny_model()
    merge(model, make_pack(model)).save(tmp_path)
    with pytest.raises(BaseMismatchError, match="not what the merge left"):
        merge(tiny_model(), other_pack(tiny_model()), onto=tmp_path)
    with pytest.raises(BaseMismatchError, match="also without the packs that are merged"):
        merge(model, other_pack(tiny_model(seed=3)))


def test_nothing_is_merged_onto_a_merge_that_could_then_not_be_undone(tmp_path: Path) -> None:
    base = tiny_model(dtype=torch.bfloat16)
    merge(base, make_pack(base, deltas=random_deltas(base, (1,))))
    base.save_pretrained(tmp_path)
    cast = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    _, (name, delta) = random_deltas(cast, (1, 2), seed=5).items()
    other = make_pack(tiny_model(dtype=torch.bfloat16), deltas={name: delta}, seed=5)
    before = picture(cast)
    for refuse in (merge, merge_report):
        with pytest.raises(BaseMismatchError, match="layers.0.*float32.* is not what the merge left") as caught:
            refuse(cast, other, onto=tmp_path)
        assert "bfloat16" in caught.value.remedy
    assert picture(cast) == before
    with pytest.raises(BaseMismatchError, match="not what the merge left"):
        merge(base.to(torch.float32), other)  # which remembers it


@pytest.mark.parametrize("verified", [True, False])
def test_an_adapter_of_a_pack_is_merged_into_the_packs_base_only(verified: bool) -> None:
    model = tiny_model(seed=0 if verified else 3)
    attach(model, make_pack(tiny_model()), "edit", verify=verified)
    if verified:
        model.get_parameter(KEYS[0].replace(".weight", ".base_layer.weight")).data[0, 0] += 1
    before = picture(model)
    with pytest.raises(BaseMismatchError, match="other values than the base"):
        merge(model, "edit")
    assert picture(model) == before


def test_an_adapter_of_a_pack_is_merged_beside_a_merged_pack() -> None:
    model, plain = tiny_model(), tiny_model()
    before = picture(model)
    first, second = make_pack(plain), other_pack(plain)
    attach(model, second, "second")
    receipts = [merge(model, first), merge(model, "second")]
    for receipt in reversed(receipts):
        unmerge(model, receipt)
    assert picture(model) == before


def fail_at(step: int, error: BaseException, function: Callable) -> Callable:
    """`function`, but its call number `step` raises instead."""
    calls: list[object] = []

    def failing(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) == step:
            raise error
        return function(*args, **kwargs)

    return failing


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["coded", "detach", "remember"])
@pytest.mark.parametrize("host", ["plain", "with adapter", "PeftModel"])
def test_a_merge_that_fails_half_way_leaves_the_model_as_it_was(
    host: str, place: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = __import__("hf_edit.compose.merge", fromlist=["merge"])
    make = {"plain": lambda m: m, "with adapter": with_user_lora, "PeftModel": peft_model}[host]
    model = make(tiny_model(dtype=torch.bfloat16).train())
    attach(model, make_pack(tiny_model(dtype=torch.bfloat16)), "edit")
    before, alone = picture(model), logits(model)
    monkeypatch.setattr(module, place, fail_at(2 if place == "coded" else 1, error, getattr(module, place)))
    with pytest.raises(type(error)):
        merge(model, "edit")
    assert picture(model) == before
    assert torch.equal(logits(model), alone)
    monkeypatch.undo()
    merge(model, "edit")


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_an_unmerge_that_fails_half_way_leaves_the_model_merged(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    receipt = merge(model, make_pack(model))
    before = picture(model)
    monkeypatch.setattr(MergeReceipt, "before", fail_at(2, error, MergeReceipt.before))
    with pytest.raises(type(error)):
        unmerge(model, receipt)
    assert picture(model) == before
    monkeypatch.undo()
    unmerge(model, receipt)
    assert torch.equal(logits(model), logits(tiny_model()))


def wrong_base(model: nn.Module) -> None:
    model.get_submodule(KEYS[1].removesuffix(".weight")).weight.data[3, 5] += 1e-3


def quantised(model: nn.Module) -> None:
    linear = model.get_submodule(KEYS[1].removesuffix(".weight"))
    linear.weight = nn.Parameter(linear.weight.data.to(torch.int8), requires_grad=False)


def offloaded(model: nn.Module) -> None:
    model.get_submodule(KEYS[1].removesuffix(".weight")).to("meta")


def tied(model: nn.Module) -> None:
    first, second = (model.get_submodule(key.removesuffix(".weight")) for key in (KEYS[1], KEYS[1].replace("1", "3")))
    second.weight = first.weight


def another_architecture(model: nn.Module) -> None:
    model.model.layers[1].mlp.down_proj = nn.Linear(20, 32)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (wrong_base, BaseMismatchError, "other values"),
        (quantised, UnsupportedModelError, "quantised"),
        (offloaded, UnsupportedModelError, "not in memory"),
        (tied, UnsupportedModelError, "shared with another module"),
        (another_architecture, BaseMismatchError, "20"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_and_left_alone(spoil, error: type[HfEditError], message: str) -> None:
    model, pack = tiny_model(), make_pack(tiny_model())
    spoil(model)
    before = picture(model) if spoil is not offloaded else None
    for refuse in (merge, merge_report):
        with pytest.raises(error, match=message) as caught:
            refuse(model, pack)
        assert caught.value.remedy
    assert before is None or picture(model) == before


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    model = tiny_model()
    pack = make_pack(model)
    with pytest.raises(ConfigError, match="no rounding 'up'"):
        merge(model, pack, rounding="up")  # type: ignore[arg-type]
    with pytest.raises(ComposeError, match="nothing to merge"):
        merge(model, [])
    with pytest.raises(ComposeError, match="twice"):
        merge(model, [pack, pack])
    pack.save_pretrained(tmp_path / "pack")
    with pytest.raises(ComposeError, match="same pack is given twice"):
        merge(model, [str(tmp_path / "pack"), pack])
    with pytest.raises(PackError, match="none"):
        merge(model, str(tmp_path / "none"))
    with pytest.raises(UnsupportedModelError, match="neither a transformers model"):
        merge(nn.Linear(2, 2), pack)  # type: ignore[arg-type]
    model.add_adapter(LoraConfig(r=2, target_modules=[KEYS[0].removesuffix(".weight")], use_dora=True), "dora")
    with pytest.raises(ComposeError, match="more than to add a matrix"):
        merge(model, "dora")


def test_adapters_merged_by_peft_stand_in_the_way() -> None:
    host = peft_model(tiny_model())
    host.merge_adapter()
    before = picture(host)
    with pytest.raises(ComposeError, match="merged into"):
        merge(host, make_pack(tiny_model()))
    assert picture(host) == before


def test_a_sum_beyond_the_range_of_the_dtype_is_refused() -> None:
    model = tiny_model(dtype=torch.float16)
    before = picture(model)
    with pytest.raises(ComputationError, match="beyond the range of torch.float16"):
        merge(model, make_pack(model, deltas=random_deltas(model, (1, 2), size=1e7)))
    assert picture(model) == before


def test_unmerging_refuses_weights_that_the_merge_did_not_leave() -> None:
    model = tiny_model()
    receipt = merge(model, make_pack(model))
    for change in (wrong_base, lambda m: m.to(torch.bfloat16)):
        other = copy.deepcopy(model)
        change(other)
        before = picture(other)
        with pytest.raises(BaseMismatchError, match="not what the merge left"):
            unmerge(other, receipt)
        assert picture(other) == before
    with pytest.raises(BaseMismatchError, match="not what the merge left"):
        unmerge(tiny_model(), receipt)
    with pytest.raises(BaseMismatchError, match="no linear map"):
        unmerge(tiny_model("gpt2"), receipt)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_only_the_weights_of_the_pack_are_written(family: str) -> None:
    model = tiny_model(family)
    pack = make_pack(model)
    receipt = merge(model, pack)
    assert set(receipt.weights) == {f"{name}.weight" for name in pack.deltas}
    changed = {
        name
        for (name, now), before in zip(model.named_parameters(), tiny_model(family).parameters(), strict=True)
        if not torch.equal(now, before)
    }
    assert changed == set(receipt.weights)
    stored = model.get_submodule(next(iter(pack.deltas))).weight
    assert stored.is_contiguous() and (stored.shape == (56, 32)) == isinstance(
        model.get_submodule(next(iter(pack.deltas))), Conv1D
    )
