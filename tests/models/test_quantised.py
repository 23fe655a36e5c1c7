"""Bases quantised by libraries that run on a CPU: a pack of the full-precision base goes on and off them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

import hf_edit
from hf_edit.compose.attach import attach, detach
from hf_edit.edits import Edit
from hf_edit.errors import UnsupportedModelError
from tests.packs.make import logits, make_pack
from tests.tiny import tiny_model, tiny_tokenizer


# the libraries speak of their own future while they are imported and used
pytestmark = pytest.mark.filterwarnings("ignore")


def bitsandbytes(**settings: Any) -> BitsAndBytesConfig:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(**settings)


def torchao() -> TorchAoConfig:
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


QUANTISERS = {
    "torchao int8": torchao,
    "bitsandbytes 8 bit": lambda: bitsandbytes(load_in_8bit=True),
    "bitsandbytes 4 bit": lambda: bitsandbytes(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
}


@pytest.fixture(params=QUANTISERS)
def quantised(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    config = QUANTISERS[request.param]()
    if "4 bit" in request.param:  # its way for processors with bfloat16 fails on maps narrower than a block of 64
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    tiny_model().save_pretrained(tmp_path)
    return AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, device_map="cpu", quantization_config=config
    )


def test_a_pack_of_the_full_base_goes_on_and_off(quantised: PreTrainedModel) -> None:
    pack = make_pack(tiny_model())
    before = logits(quantised)
    with pytest.raises(UnsupportedModelError, match="is quantised, so it cannot be compared.*verify=False"):
        attach(quantised, pack, "facts")
    assert torch.equal(logits(quantised), before)

    name, delta = next(iter(pack.deltas.items()))
    inputs = torch.randn(3, delta.A.shape[1])
    module = quantised.get_submodule(name)
    alone = module(inputs)
    attach(quantised, pack, "facts", verify=False)
    added = quantised.get_submodule(name)(inputs) - alone
    assert (added - inputs @ delta.dense().T).abs().max() < 1e-4
    detach(quantised, "facts")
    assert quantised.get_submodule(name) is module and torch.equal(logits(quantised), before)


def test_an_edit_says_that_it_needs_the_weights(quantised: PreTrainedModel) -> None:
    with pytest.raises(UnsupportedModelError, match="Load the model unquantised"):
        hf_edit.edit(quantised, tiny_tokenizer(), [Edit("Who wrote the play?", "Tarvello.", id="play")])
