"""Merging sparse adapters, and having every bit back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

from hf_edit.errors import ComposeError
from hf_edit.sparse.layer import SparseLinear
from tests.packs.make import logits
from tests.sparse.make import TOLERANCE, equal, saved, weights
from tests.tiny import tiny_model


pytestmark = [
    # PEFT asks transformers for the name that transformers has deprecated
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),  # of a second adapter
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),  # saving asks for the base's config
]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unmerging_gives_every_bit_back(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = tiny_model(family, dtype=dtype)
    before, said = weights(base), logits(base)
    for seed in (1, 2):
        saved(base, tmp_path / f"{seed}", seed=seed)
    model = PeftModel.from_pretrained(base, tmp_path / "1", adapter_name="one")
    model.load_adapter(tmp_path / "2", adapter_name="two")
    model.base_model.set_adapter(["one", "two"], inference_mode=True)
    apart = logits(model)
    for _ in range(20):
        model.merge_adapter(safe_merge=True)
        assert not equal(weights(model), before)
        model.unmerge_adapter()
    assert equal(weights(model), before)
    assert torch.equal(logits(model), apart)
    model.merge_adapter()
    assert (logits(model) - apart).abs().max() <= (TOLERANCE if dtype == torch.float32 else 1.0)
    with model.disable_adapter():
        assert torch.equal(logits(model), said)
    assert equal(weights(model), before)


def test_merged_weights_are_the_dense_ones(tmp_path: Path) -> None:
    pack = saved(tiny_model(), tmp_path)
    model = PeftModel.from_pretrained(tiny_model(), tmp_path).merge_and_unload()
    for name, delta in pack.deltas.items():
        assert torch.equal(model.get_submodule(name).weight, tiny_model().get_submodule(name).weight + delta.dense())
    assert not any(isinstance(module, SparseLinear) for module in model.modules())
    unloaded = PeftModel.from_pretrained(tiny_model(), tmp_path).unload()
    assert equal(weights(unloaded), weights(tiny_model()))


def test_one_of_two_merged_leaves_the_other_at_work(tmp_path: Path) -> None:
    """PEFT's own layers forget the other one then."""
    for seed in (1, 2):
        saved(tiny_model(), tmp_path / f"{seed}", seed=seed)
    model = PeftModel.from_pretrained(tiny_model(), tmp_path / "1", adapter_name="one")
    model.load_adapter(tmp_path / "2", adapter_name="two")
    model.base_model.set_adapter(["one", "two"], inference_mode=True)
    apart = logits(model)
    model.merge_adapter(["one"])
    assert (logits(model) - apart).abs().max() <= TOLERANCE


def test_what_another_adapter_merged_meanwhile_stays() -> None:
    layer = SparseLinear(nn.Linear(6, 4), "edit", 3)
    nn.init.normal_(layer.hf_edit_sparse_values["edit"])
    before = layer.weight.detach().clone()
    layer.merge()
    layer.weight.data[:, :2] += 1.0
    layer.unmerge()
    assert torch.allclose(layer.weight[:, :2], before[:, :2] + 1.0)
    assert torch.equal(layer.weight[:, 2:], before[:, 2:])


def test_merging_refuses_what_it_cannot_undo_well() -> None:
    layer = SparseLinear(nn.Linear(6, 4), "edit", 3)
    layer.hf_edit_sparse_values["edit"].data.fill_(torch.nan)
    before = layer.weight.detach().clone()
    with pytest.raises(ComposeError, match="NaN"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.weight, before) and not layer.merged
    codes = SparseLinear(nn.Linear(6, 4), "edit", 3)
    codes.base_layer.weight = nn.Parameter(torch.zeros(4, 6, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ComposeError, match="quantised"):
        codes.merge()
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()


def test_a_layer_that_was_cast_while_it_was_merged_is_unmerged() -> None:
    layer = SparseLinear(nn.Linear(6, 4), "edit", 3)
    nn.init.normal_(layer.hf_edit_sparse_values["edit"])
    before = layer.weight.detach().clone()
    layer.merge()
    layer.to(torch.bfloat16)
    layer.unmerge()
    assert torch.equal(layer.weight, before.to(torch.bfloat16))
