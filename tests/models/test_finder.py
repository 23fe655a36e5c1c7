"""The table of architectures and the structural finder: they agree, and say what is wrong where nothing is found."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.configuration_utils import PretrainedConfig

from hf_edit.errors import UnsupportedModelError
from hf_edit.models import finder
from hf_edit.models.editable import EditableModel
from hf_edit.models.families import Family, families
from hf_edit.models.finder import find_family
from tests.tiny import FAMILIES, OTHERS, SIZES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_has_the_family_and_it_resolves(family: str) -> None:
    model = tiny_model(family)
    found = find_family(model)
    assert found == families()[family]
    assert len(model.get_submodule(found.blocks)) == 4
    assert isinstance(model.get_submodule(f"{found.blocks}.0.{found.mlp_out[0]}"), nn.Module)


def test_every_entry_of_the_table_is_tried() -> None:
    assert set(FAMILIES) <= set(families()) <= set(FAMILIES | OTHERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_structure_says_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "families", dict)  # as if none were listed
    listed = families()[family]
    assert find_family(tiny_model(family)) == Family("structural", listed.blocks, listed.mlp_out)


def test_a_listed_family_built_otherwise_is_found_by_its_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "families", lambda: {"llama": Family("llama", "transformer.h", ("mlp.c_proj",))})
    assert find_family(tiny_model()) == Family("structural", "model.layers", ("mlp.down_proj",))


class Block(nn.Module):
    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(SIZES["hidden_size"]))
        self.linear = nn.Linear(SIZES["hidden_size"], SIZES["hidden_size"]) if linear else None

    def forward(self, hidden_states: Tensor, **_: object) -> Tensor:
        mixed = hidden_states @ self.weight
        return mixed if self.linear is None else self.linear(mixed)


class Unusual(PreTrainedModel):
    """A causal language model whose blocks are `blocks`, of `nn.Linear`s or of bare parameters."""

    config_class = LlamaConfig

    def __init__(self, blocks: type[nn.Module], depth: int = 4, linear: bool = True, config: object = None) -> None:
        super().__init__(config or LlamaConfig(**SIZES))
        self.embed = nn.Embedding(SIZES["vocab_size"], SIZES["hidden_size"])
        self.stack = blocks(*[[Block(linear) for _ in range(depth)]] if blocks is nn.ModuleList else [])
        self.eval()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: Tensor, **_: object) -> SimpleNamespace:
        states = self.embed(input_ids)
        for block in self.stack if isinstance(self.stack, nn.ModuleList) else []:
            states = block(states)
        return SimpleNamespace(logits=states @ self.embed.weight.T)


def test_an_unlisted_architecture_can_be_edited() -> None:
    assert [linear.name for linear in EditableModel.of(Unusual(nn.ModuleList)).linears] == [
        f"stack.{layer}.linear" for layer in range(4)
    ]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: Unusual(nn.Identity), "Unusual has no list of 4 decoder blocks"),
        (lambda: Unusual(nn.ModuleList, depth=3), "Unusual has no list of 4 decoder blocks"),
        (
            lambda: Unusual(nn.ModuleList, linear=False),
            "Block 0 of Unusual has no linear map .* no nn.Linear or Conv1D",
        ),
        (
            lambda: Unusual(nn.ModuleList, config=PretrainedConfig()),
            "no list of None decoder blocks, as its config says",
        ),
    ],
)
def test_what_cannot_be_edited_is_named(model, said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        EditableModel.of(model())


def test_a_linear_of_another_kind_is_named() -> None:
    """As quantisers put in place of nn.Linear."""

    class CodeBook(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[..., : SIZES["hidden_size"]]

    model = tiny_model()
    for block in model.model.layers:
        block.mlp.down_proj = CodeBook()
    with pytest.raises(UnsupportedModelError, match="CodeBook"):
        EditableModel.of(model)
