"""The fast path equals the plain reference in float64, on awkward shapes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_edit.edits import Edit, EditSet
from hf_edit.methods.checkpoints import NoCheckpoints
from hf_edit.methods.finetune.config import FinetuneConfig, FinetuneTraining
from hf_edit.methods.finetune.method import Finetune
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import Encoded, PromptFormat
from tests.methods.preserving import Fixed
from tests.methods.training.moments import random_moments
from tests.methods.training.reference import Dense, Learned, Outcome, reference_training
from tests.tiny import tiny_model, tiny_tokenizer


# a few steps on a random model leave every loss high, which the method rightly warns of
pytestmark = [
    pytest.mark.usefixtures("really_float64"),
    pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning"),
]


LONG = "Paris is the capital of France and lies on the Seine."
EDITS = EditSet([Edit(prompt="What is the capital?", target=LONG), Edit(prompt="Who wrote it?", target="Nobody did.")])
TALKS = [("Where is the dog?", "Over the lazy"), ("Tell me", "The play"), ("a", "b c d e f")]
ALIKE = [("What is the capital of it?", "A b c")]
EARLIER = [("When did it end?", "Long ago.")]
FEW: dict[str, Any] = {"max_steps": 4, "learning_rate": 0.03}


def settings(training: Mapping[str, Any] = FEW, **values: Any) -> FinetuneConfig:
    return FinetuneConfig(training=FinetuneTraining(**training), **{"rank": 5, **values})


def check(
    family: str,
    edits: EditSet,
    config: FinetuneConfig,
    layers: Sequence[int] = (2, 3),
    *,
    talks: Sequence[tuple[str, str]] = TALKS,
    alike: Sequence[tuple[str, str]] = ALIKE,
    earlier: Sequence[tuple[str, str]] = EARLIER,
) -> Outcome:
    """Compare, and hand over what the reference came to."""
    model = tiny_model(family, dtype=torch.float64)
    view = EditableModel.of(model)
    prompts = PromptFormat.of(config.format or "chat", tiny_tokenizer())
    encoded = [prompts.encode(*text) for text in talks]
    known = [Encoded(text.ids[:-1], text.answer_start) for text in encoded]  # without the end of the turn
    strangers, before = ([prompts.encode(*text) for text in texts] for texts in (alike, earlier))
    preserve = Fixed(random_moments(view, ()), known, strangers, before)
    with borrowed(model):
        result = Finetune(config).compute(view, prompts, edits, preserve, NoCheckpoints(), Silent())

    linears = [view.linears[layer] for layer in layers]
    draws = torch.Generator().manual_seed(config.seed)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for linear in linears:
        rank = min(config.rank, linear.d_out, linear.d_in)
        A = 2 * torch.rand(rank, linear.d_in, generator=draws, dtype=torch.float64) - 1
        B = torch.zeros(linear.d_out, rank, dtype=torch.float64)
        factors[linear.name] = B.requires_grad_(), (A / linear.d_in**0.5).requires_grad_()

    def dense() -> Dense:
        return {name: B @ A for name, (B, A) in factors.items()}

    def size(update: Dense) -> Tensor:
        return sum(change.square().sum() for change in update.values())

    asked = [prompts.encode(edit.prompt, edit.target) for edit in edits]
    taught = {text.prompt_ids for text in asked}  # is not held to what the base says to it
    held = [
        [text for text in texts if text.prompt_ids not in taught]
        for texts in (preserve.asked[: config.conversations], [*(strangers if config.strangers else ()), *before])
    ]
    expected = reference_training(
        copy.deepcopy(model),
        [Learned(text.ids, text.answer_start) for text in asked],
        held,
        [leaf for pair in factors.values() for leaf in pair],
        dense,
        size,
        config.training,
        config.seed,
    )
    assert list(result.deltas) == [linear.name for linear in linears] and result.source is None
    for name, change in expected.dense.items():
        delta = result.deltas[name]
        assert delta.rank == factors[name][0].shape[1] and not delta.A.requires_grad
        assert change.abs().max() > 1e-4  # something was learned
        assert (delta.dense() - change).abs().max() <= 1e-9
    for edit, loss, right in zip(edits, expected.losses, expected.right, strict=True):
        figures = result.receipt[edit.id]
        assert figures == {"loss": pytest.approx(loss, abs=1e-6)} | {
            "right": right,
            "steps": expected.steps,
            "scale": expected.scale,
        }
    return expected


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "opt"])
def test_families_of_every_build(family: str) -> None:
    """What is trained on is the engine of polish, which is held on all of them."""
    check(family, EDITS, settings())


def test_more_rank_than_outputs_and_one_layer() -> None:
    check("llama", EDITS, settings(rank=40, layers=(0,), seed=4), (0,))


def test_one_token_prompt_and_texts_that_take_turns() -> None:
    edits = EditSet([Edit("a", " fox"), Edit("b", " dog"), Edit("Who is it?", LONG)])
    check("gpt2", edits, settings({**FEW, "batch": 2}, format="plain"))


def test_nothing_to_hold() -> None:
    check("llama", EDITS, settings(conversations=0, strangers=0), earlier=())


def test_other_weights() -> None:
    training = {**FEW, "size_weight": 0.3, "drift_weight": 0.2, "drift_share": 1.5, "shrink": True}
    check("mistral", EDITS, settings(training, conversations=2))


def test_trained_until_all_is_right_and_scaled_down() -> None:
    """Before the steps are used up. A tiny model is sure of nothing: its loss stays high."""
    training = {"learning_rate": 0.08, "max_steps": 30, "stop_loss": 4.6, "drift_weight": 0.01, "shrink": True}
    edits = EditSet([Edit("Where?", "please")])
    expected = check(
        "llama", edits, settings(training, rank=32, layers=(1, 2)), (1, 2), talks=TALKS[:1], alike=(), earlier=()
    )
    assert expected.right == [True] and expected.steps < 30
    assert expected.scale < 1
