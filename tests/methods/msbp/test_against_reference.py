"""The fast path equals the plain reference in float64: methods, families, numbers of steps, batches, networks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from hf_edit.edits import Edit, EditSet
from hf_edit.methods import METHODS, method_for
from hf_edit.methods.base import EditResult
from hf_edit.methods.checkpoints import NoCheckpoints
from hf_edit.methods.msbp.method import Malmen, Mend, MultiStep, UltraEdit
from hf_edit.methods.msbp.network import HyperNetwork
from hf_edit.methods.msbp.proposal import Normaliser
from hf_edit.methods.msbp.stream import Step, Stream, Transformer
from hf_edit.methods.training.texts import prepared
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import Encoded, PromptFormat
from tests.methods.comparing import apart
from tests.methods.msbp.reference import Reference
from tests.methods.preserving import Fixed
from tests.methods.training.moments import random_moments
from tests.tiny import COMPARED, tiny_model, tiny_tokenizer


# a few steps on a random model leave every loss high, which the method rightly warns of
pytestmark = [
    pytest.mark.usefixtures("really_float64"),
    pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning"),
]

EDITS = EditSet(
    [
        Edit("What is the capital?", "Paris is the capital of France."),
        Edit("Who?", "a"),
        Edit("Tell me about Mount Fuji", "The fox lives there, please."),
        Edit("Who wrote it?", "Nobody did."),
        Edit("When?", "Around the year 1600."),
    ]
)
EARLIER = [("When did it end?", "Long ago."), ("Where?", "In France.")]
ALIKE = [("What is the dog?", "Over the lazy"), ("Who is it?", "please")]
SIZES = {"mend": 2e-3, "ultraedit": 5e-3}
"""Step sizes at which a tiny model changes visibly; for the methods with raw keys see `settings`."""


def settings(method: str, **values: Any) -> Any:
    return METHODS[method].config_class(
        **{"step_size": SIZES.get(method, 0.02), "layers": (1, 2, 3), "steps": 2, "preservation": 0, **values}
    )


def check(
    family: str,
    method: str,
    edits: EditSet = EDITS,
    *,
    earlier: Sequence[tuple[str, str]] = (),
    alike: Sequence[tuple[str, str]] = (),
    **values: Any,
) -> EditResult:
    """Compare, and hand over what the method came to."""
    config = settings(method, **values)
    model = tiny_model(family, dtype=torch.float64)
    view = EditableModel.of(model)
    prompts = PromptFormat.of(config.format or "chat", tiny_tokenizer())
    preserve = Fixed(
        random_moments(view, ("text",)),
        alike=[prompts.encode(*text) for text in alike],
        earlier=[prompts.encode(*text) for text in earlier],
    )
    with borrowed(model):
        result = method_for(config).compute(view, prompts, edits, preserve, NoCheckpoints(), Silent())

    names = [view.linears[layer].name for layer in config.layers_of(view.n_layers)]
    texts = [prompts.encode(edit.prompt, edit.target) for edit in edits]
    dense = Reference(copy.deepcopy(model), names, method, config.ridge)
    asked = learned(dense, texts, config, preserve)
    assert list(result.deltas) == names
    for name, change in dense.update.items():
        assert change.abs().max() > 1e-3  # something was learned
        assert apart(result.deltas[name].dense(), change) <= 1e-9
    for edit, loss, right in zip(edits, *dense.judged(texts), strict=True):
        figures = result.receipt[edit.id]
        assert figures["loss"] == pytest.approx(loss, abs=1e-6) and figures["right"] == right
    assert (result.source is None) == (method == "mend")  # no solve, so the factors say all
    if result.source is not None:
        for text, said, values_of in zip(texts, result.source, asked, strict=True):
            for name in names:
                assert said[name].positions.tolist() == list(range(text.answer_start - 1, len(text) - 1))
                assert apart(said[name].values, values_of[name]) <= 1e-9
    return result


def learned(dense: Reference, texts: Sequence[Encoded], config: Any, preserve: Fixed) -> list[dict[str, torch.Tensor]]:
    """The reference taught batch by batch; per text what was asked of each linear."""
    if config.preservation:
        for name in dense.names:
            dense.protect_moment(name, preserve.statistics.matrices["text"][name], config.preservation)
    if config.strangers:
        dense.protect(preserve.alike, config.stranger_weight)
    if preserve.earlier:
        dense.protect(preserve.earlier, config.protect_earlier)
    size = config.batch or len(texts)
    asked: list[dict[str, torch.Tensor]] = []
    for begin in range(0, len(texts), size):
        part = texts[begin : begin + size]
        steps = [dense.step(number, part, config.step_size) for number in range(config.steps)]
        asked += split([len(text.answer_ids) for text in part], steps)
        dense.protect(part, config.protect_earlier)
    return asked


def split(counts: list[int], steps: Sequence[Mapping[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """Per text the sum of what the steps asked of each linear."""
    sums = {name: torch.stack([step[name] for step in steps]).sum(dim=0).split(counts) for name in steps[0]}
    return [{name: parts[i] for name, parts in sums.items()} for i in range(len(counts))]


@pytest.mark.parametrize("method", ["mend", "malmen", "rledit", "ultraedit", "emsedit"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_every_method_at_every_number_of_steps(method: str, steps: int) -> None:
    check("llama", method, steps=steps)


@pytest.mark.parametrize("family", COMPARED)
def test_every_family(family: str) -> None:
    check(family, "emsedit")


@pytest.mark.parametrize("method", ["mend", "ultraedit", "emsedit"])
@pytest.mark.parametrize("batch", [1, 2])
def test_batches_keep_the_keys_of_those_before_them(method: str, batch: int) -> None:
    """The last one is smaller; a batch of one text can be one row."""
    check("gpt2", method, batch=batch, at_once=2)


def test_weights_of_what_is_kept() -> None:
    kept: dict[str, Any] = {"earlier": EARLIER, "alike": ALIKE, "batch": 2, "strangers": 1}
    check("mistral", "malmen", **kept, protect_earlier=0.3, stranger_weight=4.0, ridge=0.2)
    check("llama", "ultraedit", **kept, preservation=2.5)


def test_nothing_is_kept_at_weight_0() -> None:
    check("llama", "emsedit", batch=2, protect_earlier=0.0, earlier=EARLIER)


@pytest.mark.parametrize("count", [1, 30])
def test_more_rows_than_inputs_and_one_edit(count: int) -> None:
    """30 answers have more tokens than the linears inputs: the solve turns to the space of the inputs."""
    edits = EditSet([Edit(f"Who is {i}?", "the quick brown fox") for i in range(count)])
    check("llama", "emsedit", edits, layers=(2,), ridge=5.0)


@pytest.mark.parametrize("rule", [Mend, Malmen, UltraEdit])
@pytest.mark.parametrize("own_statistics", [False, True])
def test_networks(rule: type[MultiStep], own_statistics: bool) -> None:
    """One network for all steps, or one and a normaliser for each; scales, shifts, sizes and ridges by module."""
    model = tiny_model("llama", dtype=torch.float64)
    view = EditableModel.of(model)
    linears = [view.linears[1], *view.linears_named(["model.layers.2.self_attn.o_proj"]), view.linears[3]]
    if own_statistics:
        transformers = [Transformer(Normaliser.empty(linears), networks(seed)) for seed in (1, 2)]
    else:
        transformers = [Transformer(Normaliser.empty(linears), networks(1))] * 2
    prompts = PromptFormat.of("chat", tiny_tokenizer())
    encoded = [prompts.encode(edit.prompt, edit.target) for edit in EDITS]
    names = [linear.name for linear in linears]
    dense = Reference(
        copy.deepcopy(model), names, rule.name, 1.0, [t.networks or {} for t in transformers], own_statistics
    )
    with borrowed(model):
        texts = prepared(view, encoded, linears[0].layer)
        stream = Stream(view, linears, rule.rule, transformers, ridge=1.0, at_once=2)
        for part in (slice(0, 2), slice(2, 5)):
            for number in range(2):
                captured = stream.captured(texts[part])
                stream.take(Step(captured, stream.proposals(number, captured), 0.5))
                dense.step(number, encoded[part], 0.5)
            stream.protect(texts[part], 0.7)
            dense.protect(encoded[part], 0.7)
        losses, right = stream.judged(texts)
    for name, change in dense.update.items():
        assert change.abs().max() > 1e-3
        assert apart(stream.deltas[name].dense(), change) <= 1e-9
    expected = dense.judged(encoded)
    assert losses == pytest.approx(expected[0], abs=1e-9) and right == expected[1]


def networks(seed: int) -> dict[tuple[int, int], HyperNetwork]:
    """As if trained: no parameter is where it began."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for (d_out, d_in), modules in {(32, 56): 2, (32, 32): 1}.items():
        network = HyperNetwork(d_in, d_out, modules, 6, 2, 5e-3, generator).double()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        found[d_out, d_in] = network
    return found
