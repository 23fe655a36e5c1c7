"""What a merged model remembers, and brings along when it is copied or saved."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from hf_edit.compose.merge import merge, unmerge
from hf_edit.errors import HfEditWarning, PackError
from tests.compose.test_attach import fill_randomly
from tests.packs.make import logits, make_pack
from tests.tiny import tiny_model


# PEFT asks transformers for the name that transformers has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def test_copies_and_pickles_of_a_merged_model_stand_alone(tmp_path: Path) -> None:
    model = tiny_model()
    receipt = merge(model, make_pack(model))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        merged = logits(model)
        other.save_pretrained(tmp_path)
        unmerge(other, tmp_path)
        assert "save_pretrained" not in vars(other)
        assert torch.equal(logits(other), logits(tiny_model()))
        assert torch.equal(logits(model), merged)
    unmerge(model, receipt)


def test_a_merged_model_that_changed_is_saved_without_a_receipt(tmp_path: Path) -> None:
    model = tiny_model()
    merge(model, make_pack(model))
    model.save_pretrained(tmp_path)  # the receipt of these weights is not one of the next
    with pytest.warns(HfEditWarning, match="without a way to unmerge"):
        model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert not (tmp_path / "merge_receipt").exists()
    with pytest.raises(PackError, match="no folder merge_receipt"):
        unmerge(model, tmp_path)


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_saving_only_adapters_writes_no_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # PEFT asks the Hub for the base's config
    model = tiny_model()
    merge(model, make_pack(model))
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]), "mine")
    fill_randomly(model, "mine")
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "generation_config.json",
    ]
