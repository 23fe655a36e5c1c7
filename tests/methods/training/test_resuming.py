"""A run that was killed goes on where it was, to the same bits; another run does not take up its state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hf_edit.edits import Edit, EditSet
from hf_edit.methods import method_for
from hf_edit.methods.base import Checkpoints, EditResult
from hf_edit.methods.checkpoints import FolderCheckpoints, NoCheckpoints
from hf_edit.methods.finetune.config import FinetuneConfig, FinetuneTraining
from hf_edit.methods.polish.config import PolishConfig
from hf_edit.methods.training import state
from hf_edit.methods.training.config import TrainingConfig
from hf_edit.methods.training.loop import KEPT_EVERY
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.prompting import Encoded, PromptFormat
from tests.methods.preserving import Fixed
from tests.methods.training.moments import random_moments
from tests.tiny import tiny_model, tiny_tokenizer


pytestmark = pytest.mark.filterwarnings(
    "ignore::hf_edit.errors.HfEditWarning"
)  # few steps teach a random model little

EDITS = EditSet([Edit("Who wrote it?", "Nobody did."), Edit("Where?", "please"), Edit("What is a fox?", "A dog.")])
STEPS = 24
TRAINING = {"batch": 3, "max_steps": 12, "learning_rate": 0.03, "stop_loss": 5.0}
POLISH = PolishConfig(layers=(2, 3), rank=4, wordings=1, training=TrainingConfig(**TRAINING))
FINETUNE = FinetuneConfig(layers=(2, 3), rank=4, training=FinetuneTraining(**{**TRAINING, "max_steps": STEPS}))


class Stopped(Exception):
    """Thrown between two steps."""


class Stopping:
    """Remembers what was computed and what was taken up; throws after so many steps."""

    def __init__(self, after: int | None = None) -> None:
        self.taken_up = self.done = 0
        self._after = after

    def stage(self, name: str, total: int) -> None:
        assert (name, total) == ("training", STEPS)

    def step(self, advance: int = 1, **info: float | str) -> None:
        self.done += advance
        if "loss" not in info:
            self.taken_up = advance
        if self.done == self._after:
            raise Stopped


def run(
    config: PolishConfig | FinetuneConfig,
    checkpoints: Checkpoints,
    listener: Stopping,
    edits: EditSet = EDITS,
    asked: Sequence[tuple[str, str]] = (("Where is the dog?", "Over"), ("Tell me", "The play"), ("Why?", "please")),
) -> EditResult:
    view = EditableModel.of(tiny_model())
    prompts = PromptFormat.of("chat", tiny_tokenizer())
    talks: list[Encoded] = [prompts.encode(*talk) for talk in asked]
    preserve = Fixed(random_moments(view), talks, talks[:1], talks[1:])
    with borrowed(view.model):
        return method_for(config).compute(view, prompts, edits, preserve, checkpoints, listener)


def same(first: EditResult, second: EditResult) -> bool:
    return first.receipt == second.receipt and all(
        torch.equal(delta.B, second.deltas[name].B) and torch.equal(delta.A, second.deltas[name].A)
        for name, delta in first.deltas.items()
    )


@pytest.mark.parametrize("config", [POLISH, FINETUNE], ids=["polish", "finetune"])
def test_a_killed_run_goes_on_to_the_same_bits(config: PolishConfig | FinetuneConfig, tmp_path: Path) -> None:
    """Killed twice, and once more after its end."""
    whole = run(config, NoCheckpoints(), Stopping())
    for after, taken_up in ((KEPT_EVERY, 0), (KEPT_EVERY + 3, 0), (2 * KEPT_EVERY + 1, KEPT_EVERY)):
        listener = Stopping(after)
        with pytest.raises(Stopped):
            run(config, FolderCheckpoints(tmp_path, "base"), listener)
        assert listener.taken_up == taken_up
    for _ in range(2):
        listener = Stopping()
        assert same(run(config, FolderCheckpoints(tmp_path, "base"), listener), whole)
        assert (listener.taken_up, listener.done) == (2 * KEPT_EVERY, STEPS)


def test_a_run_that_came_to_rest_ends_there_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it rests at a step that is kept: killed while the end is asked for, or given again."""
    monkeypatch.setattr(state, "PATIENCE_STEPS", 2 * KEPT_EVERY - 1)
    still = {"batch": 6, "max_steps": STEPS, "learning_rate": 1e-12, "stop_loss": 0.0}  # each step draws all texts
    config = replace(POLISH, training=TrainingConfig(**still))
    whole = run(config, NoCheckpoints(), Stopping())
    assert {figures["steps"] for figures in whole.receipt.values()} == {2 * KEPT_EVERY}
    for _ in range(2):
        assert same(run(config, FolderCheckpoints(tmp_path, "base"), Stopping()), whole)


def test_other_runs_do_not_take_it_up(tmp_path: Path) -> None:
    others: list[tuple[PolishConfig | FinetuneConfig, dict[str, object]]] = [
        (replace(POLISH, training=replace(POLISH.training, learning_rate=0.02)), {}),
        (replace(POLISH, seed=1), {}),
        (replace(POLISH, rank=5), {}),
        (replace(POLISH, layers=(1, 3)), {}),
        (replace(POLISH, wording_weight=0.4), {}),
        (replace(POLISH, chat_weight=2.0), {}),
        (replace(FINETUNE, layers=(1, 3)), {}),
        (POLISH, {"edits": EditSet([*list(EDITS)[:2], Edit("What is a fox?", "A cat.")])}),
        (POLISH, {"asked": (("Where is the dog?", "Over"), ("Tell me", "A play"), ("Why?", "please"))}),
    ]
    for config in (POLISH, FINETUNE):
        with pytest.raises(Stopped):
            run(config, FolderCheckpoints(tmp_path, "base"), Stopping(KEPT_EVERY + 1))
    for config, arguments in others:
        listener = Stopping(1)
        with pytest.raises(Stopped):
            run(config, FolderCheckpoints(tmp_path, "base"), listener, **arguments)  # type: ignore[arg-type]
        assert listener.taken_up == 0
    for config in (POLISH, FINETUNE):
        listener = Stopping(KEPT_EVERY + 1)
        with pytest.raises(Stopped):
            run(config, FolderCheckpoints(tmp_path, "base"), listener)
        assert listener.taken_up == KEPT_EVERY
