"""What a method computes does not depend on how much runs at once, nor on whether anything is kept: in float64."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_edit.edits import Edit, EditSet
from hf_edit.errors import HfEditWarning, MemoryBudgetError
from hf_edit.methods import method_for
from hf_edit.methods.anyedit.config import AnyEditConfig
from hf_edit.methods.checkpoints import NoCheckpoints
from hf_edit.methods.finetune.config import FinetuneConfig, FinetuneTraining
from hf_edit.methods.joining.asked import Asked, keys_of
from hf_edit.methods.joining.config import JoinSettings
from hf_edit.methods.memit.config import MemitConfig
from hf_edit.methods.msbp.config import CalibrationConfig, EMSEditConfig
from hf_edit.methods.polish.config import PolishConfig, PolishSettings
from hf_edit.methods.training.config import TrainingConfig
from hf_edit.methods.training.texts import Text, prepared
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.models.memory import Memory
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from tests.methods.preserving import Fixed
from tests.methods.training.moments import random_moments
from tests.short_of_memory import Short
from tests.tiny import tiny_model, tiny_tokenizer


PLAIN = PromptFormat.of("plain", tiny_tokenizer())
EDITS = EditSet(
    [
        Edit("Who wrote Hamlet?", "Nobody.", subject="Hamlet"),
        Edit("Where is the brown fox?", "In France, please.", subject="fox"),
        Edit("What is the capital?", "Lazy Paris.", subject="capital"),
        Edit("Why?", "A long answer, around the year 1600 and beyond it.", subject="Why"),
    ]
)
NOUNS = ("play", "year", "help", "dog", "cat")
ALIKE = EditSet([Edit(f"Who wrote the {noun}?", f"Nobody wrote the {noun}, please.") for noun in NOUNS])
TRAINING: dict[str, Any] = {"max_steps": 2, "learning_rate": 0.05, "stop_loss": 0.0}
CONFIGS = {
    "polish": PolishConfig(
        format="plain", layers=(1, 2), rank=3, training=TrainingConfig(**TRAINING, batch=4, shrink=False)
    ),
    "finetune": FinetuneConfig(format="plain", layers=(2,), rank=3, training=FinetuneTraining(**TRAINING, batch=4)),
    "emsedit": EMSEditConfig(
        format="plain", layers=(1, 2), steps=2, batch=3, calibration=CalibrationConfig(drift_weight=1.0)
    ),
    "anyedit": AnyEditConfig(format="plain", layers=(1, 2), window=4, max_evaluations=3),
    "apart": AnyEditConfig(
        format="plain",
        backend="direct",
        layers=(1, 2),
        together=2,
        direct=PolishSettings(rank=3, training=TrainingConfig(**TRAINING, batch=4, shrink=False)),
        join=JoinSettings(rank=8, rounds=2),
    ),
    "memit": MemitConfig(format="plain", layers=(1, 2), max_evaluations=3, prefixes=0, batch=4),
}
KINDS = {
    "polish": {"training", "holding", "judging", "tracing"},
    "finetune": {"training", "holding", "judging", "tracing"},
    "emsedit": {"capturing", "probing", "passing", "tracing"},
    "anyedit": {"targets", "tracing"},
    "apart": {"training", "holding", "judging", "tracing", "joining"},
    "memit": {"targets"},
}


def learned(method: str, memory: Memory | None = None, edits: EditSet = EDITS) -> tuple[dict[str, Tensor], Memory]:
    """The dense update of the tiny Llama, computed with this memory, and the memory."""
    view = EditableModel.of(tiny_model(dtype=torch.float64))
    view.memory = memory or view.memory
    talks = [PLAIN.encode(*text) for text in (("Who?", "please"), ("Tell me", "The play"), ("Is it?", "A fox."))]
    preserve = Fixed(random_moments(view), talks, alike=talks[:2], earlier=talks[2:])
    config = CONFIGS[method]
    with borrowed(view.model), view.memory.watched(), warnings.catch_warnings():
        warnings.simplefilter("ignore", HfEditWarning)  # random models learn little
        result = method_for(config).compute(view, PLAIN, edits, preserve, NoCheckpoints(), Silent())
    return {name: delta.dense() for name, delta in result.deltas.items()}, view.memory


def check_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, change in expected.items():
        assert change.norm() > 0
        assert (found[name] - change).norm() < 1e-9 * change.norm()


@pytest.mark.usefixtures("really_float64")
@pytest.mark.parametrize("method", CONFIGS)
def test_parts_come_to_the_same(method: str) -> None:
    expected, _ = learned(method)
    for at_most in (1, 2):
        memory = Short(at_most)
        check_same(learned(method, memory)[0], expected)
        assert memory.ran_out >= KINDS[method] - ({"probing", "holding"} if at_most == 2 else set())


@pytest.mark.usefixtures("really_float64")
@pytest.mark.parametrize("method", ["polish", "finetune", "emsedit", "anyedit"])
def test_recomputing_comes_to_the_same(method: str) -> None:
    memory = Short(recomputes=True)
    check_same(learned(method, memory)[0], learned(method)[0])
    assert memory.ran_out == KINDS[method] & {"training", "holding", "capturing", "targets"}


@pytest.mark.usefixtures("really_float64")
@pytest.mark.parametrize("method", ["polish", "finetune", "emsedit", "anyedit", "apart"])
def test_states_that_are_not_kept_are_found_anew(method: str) -> None:
    check_same(learned(method, Short(keeping=False))[0], learned(method)[0])


def test_what_is_asked_of_a_text_is_found_without_kept_states() -> None:
    view = EditableModel.of(tiny_model())
    encoded = [PLAIN.encode("Who wrote Hamlet?", "Nobody.")]
    linears = view.linears[1:3]
    values = {linear.name: torch.randn(len(encoded[0]) - 1, linear.d_out) for linear in linears}

    def keys() -> dict[str, Tensor]:
        (text,) = prepared(view, encoded, 1)
        assert isinstance(text, Text) and isinstance(text.states, Tensor) == view.memory.keeps(1)
        return keys_of(view, Asked(text, values), linears, 1)

    kept = keys()
    view.memory = Short(keeping=False)
    for name, rows in keys().items():
        torch.testing.assert_close(rows, kept[name])


def test_recomputing_takes_less() -> None:
    def peak(recomputing: bool) -> int:
        view = EditableModel.of(tiny_model())
        view.memory = memory = Memory(torch.device("cpu"), 1 << 30)
        with borrowed(view.model):
            (text,) = prepared(view, [PLAIN.encode("a b c d e f g h " * 8, "Nobody.")], 0)
            shift = torch.zeros(1, 1, view.hidden_size, requires_grad=True)
            with memory.watched():
                memory.recomputing = recomputing
                with view.shifted({view.linears[0].name: shift.expand(1, len(text.ids), -1)}):
                    logits = view.logits_at(text.ids[None], torch.arange(len(text.ids))[None] > text.start)
                    torch.autograd.grad(logits.sum(), shift)
        assert memory.peak is not None
        return memory.peak

    assert peak(True) < 0.6 * peak(False)


@pytest.mark.parametrize("method", ["finetune", "emsedit"])
def test_a_budget_is_kept_or_refused(method: str) -> None:
    device = torch.device("cpu")
    expected, ample = learned(method, Memory(device, 1 << 40), ALIKE)
    assert ample.peak is not None
    budget = int(0.7 * ample.peak)
    found, memory = learned(method, Memory(device, budget), ALIKE)
    assert memory.peak is not None and memory.peak <= budget
    check_same(found, expected)
    with pytest.raises(MemoryBudgetError, match="the memory budget is 10KB"):
        learned(method, Memory(device, 10_000), ALIKE)
