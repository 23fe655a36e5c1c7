"""What PEFT and transformers save of a sparse adapter, and configurations."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from hf_edit.errors import BaseMismatchError, PackError, UnsupportedModelError
from hf_edit.sparse.config import PEFT_TYPE, SparseConfig
from hf_edit.sparse.layer import SparseLinear
from tests.packs.make import logits
from tests.sparse.make import COUNTS, equal, saved
from tests.tiny import tiny_model


pytestmark = [
    # PEFT asks transformers for the name that transformers has deprecated
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),  # of a second adapter
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),  # saving asks for the base's config
]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_saving_round_trip_keeps_every_bit(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    saved(model, tmp_path / "pack")
    original = load_file(tmp_path / "pack" / "adapter_model.safetensors")
    wrapped = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "pack")
    wrapped.save_pretrained(tmp_path / "peft")
    model.load_adapter(tmp_path / "pack")
    model.save_pretrained(tmp_path / "transformers")
    for way in ("peft", "transformers"):
        assert equal(load_file(tmp_path / way / "adapter_model.safetensors"), original)
        config = json.loads((tmp_path / way / "adapter_config.json").read_text())
        assert config["peft_type"] == PEFT_TYPE and sorted(config["columns"].values()) == sorted(COUNTS)
        again = PeftModel.from_pretrained(tiny_model(family), tmp_path / way)
        assert torch.equal(logits(again), logits(wrapped))


def test_many_modules_are_found_by_their_full_names(tmp_path: Path) -> None:
    """PEFT condenses twenty names and more to suffixes, of which some fit other modules."""
    config = SparseConfig(columns={f"model.layers.{i}.mlp.down_proj": 1 for i in (0, 1, 2)}, task_type="CAUSAL_LM")
    config.target_modules = {"down_proj"}
    model = get_peft_model(tiny_model(), config)
    assert len([m for m in model.modules() if isinstance(m, SparseLinear)]) == 3
    model.save_pretrained(tmp_path)
    assert PeftModel.from_pretrained(tiny_model(), tmp_path).peft_config["default"].target_modules == set(
        config.columns
    )


def test_configurations_are_copied_and_pickled() -> None:
    config = SparseConfig(columns={"a": 2})
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config and twin.peft_type == PEFT_TYPE and twin.peft_type.value == "HF_EDIT_SPARSE"


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "3"])
def test_configurations_with_other_than_counts_are_refused(count: object) -> None:
    with pytest.raises(PackError, match="columns of a"):
        SparseConfig(columns={"a": count})  # type: ignore[dict-item]


def test_layers_refuse_what_does_not_fit() -> None:
    with pytest.raises(BaseMismatchError, match="7 columns .* with 6 inputs"):
        SparseLinear(nn.Linear(6, 4), "edit", 7)
    with pytest.raises(UnsupportedModelError, match="Embedding"):
        SparseLinear(nn.Embedding(6, 4), "edit", 1)


def test_one_made_by_hand_begins_with_nothing_and_learns() -> None:
    model = get_peft_model(tiny_model(), SparseConfig(columns={"model.layers.1.mlp.down_proj": 4}))
    assert torch.equal(logits(model), logits(tiny_model()))
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert len(trained) == 1 and "hf_edit_sparse_values" in trained[0]
