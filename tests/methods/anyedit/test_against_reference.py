"""The fast path equals the plain reference in float64, on every family and on awkward shapes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_edit.edits import Edit, EditSet
from hf_edit.methods.anyedit import update
from hf_edit.methods.anyedit.config import AnyEditConfig
from hf_edit.methods.anyedit.method import AnyEdit
from hf_edit.methods.checkpoints import NoCheckpoints
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.models.memory import Memory
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.moments import SecondMoments
from tests.methods.anyedit.reference import chunk_bounds, reference_targets, reference_updates
from tests.methods.comparing import apart
from tests.methods.preserving import Fixed
from tests.short_of_memory import Short
from tests.tiny import BEHIND, COMPARED, FAMILIES, tiny_model, tiny_tokenizer


# a few steps on a random model leave every loss high, which the method rightly warns of
pytestmark = [
    pytest.mark.usefixtures("really_float64"),
    pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning"),
]


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
    format: str = "chat",
    earlier: Sequence[tuple[str, str]] = (),
    memory: Memory | None = None,
) -> list[int]:
    """Compares everything; returns how many evaluations each edit took."""
    assert config.layers is not None
    model = tiny_model(family, dtype=torch.float64)
    view = EditableModel.of(model)
    view.memory = memory or view.memory
    prompts = PromptFormat.of(format, tiny_tokenizer())
    statistics = random_moments(view, config.layers)
    taught = [prompts.encode(*text) for text in earlier]
    preserve = Fixed(statistics, earlier=taught)
    with borrowed(model):
        result = AnyEdit(config).compute(view, prompts, edits, preserve, NoCheckpoints(), Silent())

    plain = copy.deepcopy(model)
    linears = [plain.get_submodule(view.linears[layer].name) for layer in config.layers]
    blocks = [plain.get_submodule(f"{view.family.blocks}.{layer}") for layer in config.layers]
    encoded = [prompts.encode(e.prompt, e.target) for e in edits]
    behind_norm = family.startswith(BEHIND)
    changes = [
        reference_targets(
            plain,
            blocks[-1],
            linears[-1],
            e,
            chunk_bounds(plain, prompts, e, config),
            config,
            behind_norm,
            len(edits),
        )
        for e in encoded
    ]
    Cs = [statistics.combined(view.linears[layer].name, config.moment_weights(len(edits))) for layer in config.layers]
    updates = reference_updates(plain, blocks, linears, encoded, changes, Cs, taught, config, behind_norm)

    for layer, expected in zip(config.layers, updates, strict=True):
        delta = result.deltas[view.linears[layer].name]
        assert delta.B.dtype == torch.float64
        assert expected.abs().max() > 1e-4  # something was learned
        assert apart(delta.dense(), expected) <= 1e-9
    for change, asked in zip(changes, result.source, strict=True):
        values = asked[view.linears[config.layers[-1]].name]
        assert values.positions.tolist() == list(change)
        if len(config.layers) == 1:  # of several, the last is asked for what those before it left
            assert apart(values.values, torch.stack([*change.values()])) <= 1e-9
    return [figures["evaluations"] for figures in result.receipt.values()]


FAST = {"window": 7, "max_evaluations": 6, "stop_loss": 1e-4}
NULL_SPACE: dict[str, dict[str, float]] = {"memit": {}, "alphaedit": {"null_share": 0.6, "beta": 0.7}}


@pytest.mark.parametrize("family", COMPARED)
def test_every_family(family: str) -> None:
    check(family, EDITS, AnyEditConfig(layers=(2,), **FAST))


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.startswith(BEHIND)])
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


STORY = "It is Paris. It lies on the Seine, and has done so for long. So it is. Many people live there."
STORIES = EditSet([Edit(prompt="What is the capital?", target=STORY), Edit(prompt="Who?", target="Nobody. Or all.")])


@pytest.mark.parametrize("chunker", ["sentence", "surprisal", "none"])
def test_chunkers(chunker: str) -> None:
    joined = {"min_chunk": 4} if chunker == "sentence" else {}
    check("llama", STORIES, AnyEditConfig(layers=(2,), chunker=chunker, **joined, **FAST))


@pytest.mark.parametrize("backend", ["memit", "alphaedit"])
@pytest.mark.parametrize("layers", [(1,), (0, 2)])
def test_backends_with_earlier_edits(backend: str, layers: tuple[int, ...]) -> None:
    config = AnyEditConfig(layers=layers, backend=backend, earlier_weight=0.4, **NULL_SPACE[backend], **FAST)
    check("qwen2", EDITS, config, earlier=[("When did it end?", "Long ago."), ("a", "b")])


@pytest.mark.parametrize("format", ["chat", "plain"])
@pytest.mark.parametrize("backend", ["memit", "alphaedit"])
def test_the_baselines_without_chunks(backend: str, format: str) -> None:
    """As published: one key for each answer, and nothing else of its text held."""
    config = AnyEditConfig(
        layers=(1,), backend=backend, chunker="none", own_weight=0, format=format, **NULL_SPACE[backend], **FAST
    )
    check("llama", MIXED, config, format=format)


@pytest.mark.parametrize("earlier", [[], [("Where?", "Here and there.")]])
def test_alphaedit_with_few_tokens(earlier: list[tuple[str, str]]) -> None:
    """Then its solve is done in the space of the tokens, and with earlier edits in that of the inputs."""
    edits = EditSet([Edit(prompt="a", target=" fox")])
    config = AnyEditConfig(layers=(2,), backend="alphaedit", null_share=0.9, format="plain", **FAST)
    check("gpt2", edits, config, format="plain", earlier=earlier)


def test_many_keys_at_once() -> None:
    """More keys than the linear has outputs: the update's rank is that of the map."""
    many = EditSet([Edit(prompt=f"Question {i}?", target=f"{LONG} {i}") for i in range(2)])
    check("llama", many, AnyEditConfig(layers=(1,), window=1, max_evaluations=2))


@pytest.mark.parametrize("nested_chunks", [None, 2])
def test_the_nested_objective(nested_chunks: int | None) -> None:
    config = AnyEditConfig(layers=(2,), objective="nested", nested_chunks=nested_chunks, window=7, max_evaluations=4)
    check("llama", EDITS, config)


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "mistral"])
def test_the_nested_objective_over_overlapping_windows(family: str) -> None:
    """Gemma and Mistral attend through windows that are shorter than the nested texts."""
    config = AnyEditConfig(layers=(1,), objective="nested", window=6, overlap=2, max_evaluations=2)
    check(family, EDITS[:1], config)


def test_texts_that_are_run_in_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "TOKENS_AT_ONCE", 60)
    many = EditSet([Edit(prompt=f"What is it, {i}?", target="he " * (1 + 6 * i)) for i in range(3)])
    config = AnyEditConfig(layers=(0, 2), window=7, max_evaluations=2)
    check("llama", many, config, earlier=[("When did it end?", LONG), ("a", "b")])


# ---- edits that run in lockstep --------------------------------------------------------------------------------

MIXED = EditSet(
    [
        Edit(prompt="a", target=" quick brown fox jumps over"),  # in plain text a prompt of one token
        Edit(prompt="Where is the quick brown fox that jumps, if anywhere?", target="In France."),
        Edit(prompt="Who?", target=LONG),
        Edit(prompt="Tell me about the lazy dog", target="b"),
    ]
)


def lengths_of(edits: EditSet, format: str) -> list[int]:
    prompts = PromptFormat.of(format, tiny_tokenizer())
    return [len(prompts.encode(edit.prompt, edit.target).answer_ids) for edit in edits]


@pytest.mark.parametrize("family", COMPARED)
def test_edits_of_other_lengths(family: str) -> None:
    """A prompt of one token, so that nothing stands before its key, and a last chunk of one token."""
    lengths = lengths_of(MIXED, "plain")
    window = next(size for size in range(4, 9) if any(length % size == 1 for length in lengths if length > size))
    config = AnyEditConfig(layers=(2,), format="plain", window=window, max_evaluations=4)
    assert len({-(-length // window) for length in lengths}) > 2
    check(family, MIXED, config, format="plain")


@pytest.mark.parametrize("family", ["gemma2", "mistral"])
def test_chunks_of_other_lengths(family: str) -> None:
    """Sentences settle as many tokens as they have; attention counts what stands between tokens."""
    config = AnyEditConfig(layers=(1,), chunker="sentence", window=20, min_chunk=4, max_evaluations=3)
    check(family, EditSet([*STORIES, EDITS[1], Edit(prompt="Why?", target=LONG)]), config)


def test_a_batch_spends_as_much_as_single_runs() -> None:
    """What is done leaves the batch: edits stop at different times, each where it stops alone."""
    config = AnyEditConfig(layers=(2,), window=7, max_evaluations=12, stop_loss=6.0, clamp=3.0, overshoot=False)
    together = check("llama", MIXED, config)
    assert together == check("llama", MIXED, replace(config, at_once=1))
    assert together == check("llama", MIXED, replace(config, at_once=3))
    most = 12 * sum(-(-length // 7) for length in lengths_of(MIXED, "chat"))
    assert len(set(together)) > 2 and sum(together) < most


@pytest.mark.parametrize("short", [{"at_most": 2}, {"at_most": 1}, {"recomputes": True}, {"keeping": False}])
@pytest.mark.parametrize("objective", ["chunk", "nested"])
def test_less_memory_comes_to_the_same(short: dict[str, Any], objective: str) -> None:
    config = AnyEditConfig(layers=(1,), objective=objective, window=9, max_evaluations=3)
    memory = Short(**short)
    check("qwen2", MIXED, config, memory=memory)
    assert ("targets" in memory.ran_out) == memory.keeping


def test_nested_texts_of_several_edits() -> None:
    check("mistral", MIXED, AnyEditConfig(layers=(2,), objective="nested", window=5, overlap=1, max_evaluations=3))
