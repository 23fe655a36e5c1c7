"""The fast path equals the plain reference in float64, on every family and on awkward shapes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from hf_edit.edits import Edit, EditSet
from hf_edit.methods import method_for
from hf_edit.methods.checkpoints import NoCheckpoints
from hf_edit.methods.contexts import invent_prefixes
from hf_edit.methods.memit.config import AlphaEditConfig, MemitConfig, ShortFactConfig
from hf_edit.methods.memit.facts import prepared
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import Encoded, PromptFormat
from tests.methods.anyedit.test_against_reference import random_moments
from tests.methods.comparing import apart
from tests.methods.memit.reference import reference_target, reference_updates
from tests.methods.preserving import Fixed
from tests.tiny import BEHIND, COMPARED, tiny_model, tiny_tokenizer


# a few steps on a random model leave every loss high, which the method rightly warns of
pytestmark = [
    pytest.mark.usefixtures("really_float64"),
    pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning"),
]


MIXED = EditSet(
    [
        Edit("The capital of France is", "Berlin and some more", subject="France"),
        Edit("Hamlet", "a", subject="Hamlet"),  # beginning and end, answered by one token
        Edit("Paris, where you find the quick brown fox that jumps, is in", "Fuji", subject="Paris"),
        Edit("Who is it?", "Nobody.", subject="Shakespeare"),  # not named
    ]
)
FEW = {"prefixes": 2, "prefix_tokens": 4, "max_evaluations": 5, "batch": 3}


def check(
    family: str,
    edits: EditSet,
    config: ShortFactConfig,
    format: str = "plain",
    earlier: tuple[Encoded, ...] = (),
    model: PreTrainedModel | None = None,
) -> list[int]:
    """Compares everything; returns how many evaluations each fact took."""
    assert config.layers is not None
    model = model or tiny_model(family, dtype=torch.float64)
    view = EditableModel.of(model)
    prompts = PromptFormat.of(format, tiny_tokenizer())
    statistics = random_moments(view, config.layers)
    preserve = Fixed(statistics, earlier=earlier)
    with borrowed(model):
        result = method_for(config).compute(view, prompts, edits, preserve, NoCheckpoints(), Silent())
        prefixes = invent_prefixes(view, prompts, config.prefixes, config.prefix_tokens, config.seed)
    facts = [prepared(edit, prompts, prefixes, view.max_length) for edit in edits]

    plain = copy.deepcopy(model)
    names = [view.linears[layer].name for layer in config.layers]
    linears = [plain.get_submodule(name) for name in names]
    blocks = [plain.get_submodule(f"{view.family.blocks}.{layer}") for layer in config.layers]
    behind_norm = family.startswith(BEHIND)
    found = [reference_target(plain, blocks[-1], linears[-1], fact, config, behind_norm) for fact in facts]
    Cs = [statistics.combined(name, config.moment_weights()) for name in names]
    texts = [text.ids for text in earlier]
    updates = reference_updates(plain, blocks, linears, facts, found, texts, Cs, config, behind_norm)

    for name, update in zip(names, updates, strict=True):
        delta = result.deltas[name]
        assert delta.B.dtype == torch.float64
        assert delta.rank <= min(*delta.shape, len(edits))
        assert update.abs().max() > 1e-4  # something was learned
        assert apart(delta.dense(), update) <= 1e-9
    for edit, fact, target, asked in zip(edits, facts, found, result.source, strict=True):
        figures = result.receipt[edit.id]
        assert figures["evaluations"] == target.evaluations
        assert figures["loss"] == pytest.approx(target.loss, abs=1e-6)
        assert figures["divergence"] == pytest.approx(target.divergence, abs=1e-6)
        assert all(values.positions.tolist() == [fact.key] for values in asked.values())
        share = asked[names[0]].values[0] * len(names)
        assert apart(share, target.delta) <= 1e-9
    return [target.evaluations for target in found]


@pytest.mark.parametrize("family", COMPARED)
def test_every_family(family: str) -> None:
    check(family, MIXED, MemitConfig(layers=(2,), **FEW))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt"])
def test_spread_over_layers(family: str) -> None:
    check(family, MIXED, MemitConfig(layers=(0, 1, 3), **FEW))


@pytest.mark.parametrize("layers", [(0,), (1, 3)])
def test_alphaedit(layers: tuple[int, ...]) -> None:
    check("llama", MIXED, AlphaEditConfig(layers=layers, null_share=0.5, beta=0.3, **FEW))


@pytest.mark.parametrize("format", ["chat", "qa"])
def test_formats(format: str) -> None:
    check("qwen2", MIXED, MemitConfig(layers=(1,), **FEW), format=format)


def test_without_prefixes_and_nothing_in_front_of_the_key() -> None:
    edits = EditSet([Edit("Hamlet", "was a dog", subject="Hamlet"), Edit("a b c", "d", subject="a")])
    check("gpt2", edits, MemitConfig(layers=(2,), prefixes=0, max_evaluations=4))
    check("llama", edits[1:], MemitConfig(layers=(2,), prefixes=0, max_evaluations=4))


def test_padding_under_eager_attention() -> None:
    model = tiny_model(dtype=torch.float64)
    model.set_attn_implementation("eager")
    check("llama", MIXED, MemitConfig(layers=(2,), **FEW), model=model)


@pytest.mark.parametrize("config", [MemitConfig(layers=(0, 1)), AlphaEditConfig(layers=(1,))])
def test_more_facts_than_inputs(config: ShortFactConfig) -> None:
    many = EditSet([Edit(f"Number {i} is", f"{i % 7}", subject=f"Number {i}") for i in range(60)])
    check("llama", many, replace(config, prefixes=0, max_evaluations=2, batch=32))


def test_facts_that_are_done_leave_the_batch() -> None:
    config = MemitConfig(layers=(1,), learning_rate=0.5, clamp=6, stop_loss=6.05, max_evaluations=15, prefixes=1)
    assert len(set(check("llama", MIXED, config))) > 1


def test_other_weights() -> None:
    prompts = PromptFormat.of("plain", tiny_tokenizer())
    earlier = (prompts.encode("The fox", "jumps over the dog"), prompts.encode("x", "y"))
    config = MemitConfig(
        layers=(1, 2),
        preservation=0.3,
        ridge=0.01,
        prompt_weight=0.7,
        answer_weight=0.0,
        earlier_weight=0.4,
        kl_weight=2.0,
        weight_decay=0.5,
        clamp=0.2,
        **FEW,
    )
    check("mistral", MIXED, config, earlier=earlier)
