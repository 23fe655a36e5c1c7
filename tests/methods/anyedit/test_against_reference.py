"""The fast path equals the plain reference in float64, on every family and on awkward shapes."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from hf_edit.edits import Edit, EditSet
from hf_edit.methods.anyedit.config import AnyEditConfig
from hf_edit.methods.anyedit.method import AnyEdit
from hf_edit.methods.checkpoints import NoCheckpoints
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.moments import SecondMoments
from tests.methods.anyedit.reference import reference_targets, reference_updates
from tests.methods.preserving import Fixed
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer


# a few steps on a random model leave every loss high, which the method rightly warns of
pytestmark = pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning")


@pytest.fixture(autouse=True)
def really_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers computes norms and softmax in float32 whatever the model's dtype, which would hide small errors."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


LONG = "Paris is the capital of France and lies on the Seine."
EDITS = EditSet([Edit(prompt="What is the capital?", target=LONG), Edit(prompt="Who wrote it?", target="Nobody did.")])


def random_moments(view: EditableModel, layers: tuple[int, ...]) -> SecondMoments:
    generator = torch.Generator().manual_seed(1)
    matrices: dict[str, dict[str, Tensor]] = {"text": {}, "prompt": {}, "answer": {}}
    for part in matrices:
        for layer in layers:
            linear = view.linears[layer]
            Z = torch.randn(3 * linear.d_in, linear.d_in, generator=generator, dtype=torch.float64)
            matrices[part][linear.name] = Z.T @ Z / len(Z)
    return SecondMoments(matrices, dict.fromkeys(matrices, 100), "random")


def check(
    family: str,
    edits: EditSet,
    config: AnyEditConfig,
    moments: Mapping[str, float] | None = None,
    format: str = "chat",
) -> None:
    assert config.layers is not None
    model = tiny_model(family, dtype=torch.float64)
    view = EditableModel.of(model)
    prompts = PromptFormat.of(format, tiny_tokenizer())
    statistics = random_moments(view, config.layers)
    with borrowed(model):
        result = AnyEdit(config).compute(view, prompts, edits, Fixed(statistics), NoCheckpoints(), Silent())

    plain = copy.deepcopy(model)
    linears = [plain.get_submodule(view.linears[layer].name) for layer in config.layers]
    blocks = [plain.get_submodule(f"{view.family.blocks}.{layer}") for layer in config.layers]
    encoded = [prompts.encode(e.prompt, e.target) for e in edits]
    behind_norm = family.startswith("gemma")
    changes = [reference_targets(plain, blocks[-1], linears[-1], e, config, behind_norm, len(edits)) for e in encoded]
    Cs = [statistics.combined(view.linears[layer].name, config.moment_weights(len(edits))) for layer in config.layers]
    updates = reference_updates(plain, blocks, linears, encoded, changes, Cs, config, behind_norm)

    for layer, update in zip(config.layers, updates, strict=True):
        delta = result.deltas[view.linears[layer].name]
        assert delta.B.dtype == torch.float64
        assert update.abs().max() > 1e-4  # something was learned
        assert (delta.dense() - update).abs().max() <= 1e-9
    for change, asked in zip(changes, result.source, strict=True):
        values = asked[view.linears[config.layers[-1]].name]
        assert values.positions.tolist() == list(change)


FAST = {"window": 7, "max_evaluations": 6, "stop_loss": 1e-4}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str) -> None:
    check(family, EDITS, AnyEditConfig(layers=(2,), **FAST))


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.startswith("gemma")])
def test_spread_over_layers(family: str) -> None:
    check(family, EDITS, AnyEditConfig(layers=(0, 1, 3), **FAST))


@pytest.mark.parametrize("overlap", [0, 2])
@pytest.mark.parametrize("window", [1, 3, 1000])
def test_windows(window: int, overlap: int) -> None:
    if overlap >= window:
        overlap = window - 1
    edits = EditSet([Edit(prompt="Who?", target="Me and you.")])
    check("llama", edits, AnyEditConfig(layers=(1,), window=window, overlap=overlap, max_evaluations=3))


def test_one_token_last_chunk() -> None:
    prompts = PromptFormat.of("chat", tiny_tokenizer())
    length = len(prompts.encode("Who?", "Me and you.").answer_ids)
    edits = EditSet([Edit(prompt="Who?", target="Me and you.")])
    check("qwen2", edits, AnyEditConfig(layers=(2,), window=length - 1, max_evaluations=4))


def test_one_token_prompt_without_a_prefix() -> None:
    edits = EditSet([Edit(prompt="a", target=" quick brown fox")])
    prompts = PromptFormat.of("plain", tiny_tokenizer())
    assert len(prompts.prompt_ids("a")) == 1
    check("gpt2", edits, AnyEditConfig(layers=(2,), format="plain", **FAST), format="plain")


def test_more_tokens_than_inputs() -> None:
    """Then the solve is done in the space of the inputs."""
    many = EditSet([Edit(prompt=f"Question {i}, what is it?", target=f"{LONG} {i}") for i in range(3)])
    check("llama", many, AnyEditConfig(layers=(1,), **FAST))


def test_other_weights() -> None:
    config = AnyEditConfig(
        layers=(2,),
        own_weight=0.25,
        prompt_weight=0.7,
        preservation=0.3,
        ridge=0.01,
        clamp=0.2,
        first_clamp=0.1,
        weight_decay=0.5,
        **FAST,
    )
    check("mistral", EDITS, config)
