"""Small facts to train hypernetworks on, a quick configuration, and a run of it in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_edit.edits import Edit, EditSet, Probe
from hf_edit.methods.base import Checkpoints
from hf_edit.methods.checkpoints import NoCheckpoints
from hf_edit.methods.msbp.hypernet import Hypernet
from hf_edit.methods.msbp.training.config import HypernetConfig
from hf_edit.methods.msbp.training.loop import train_hypernet
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.processes import is_first
from hf_edit.progress import Progress, Silent
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.moments import SecondMoments
from tests.methods.preserving import Fixed
from tests.tiny import tiny_model, tiny_tokenizer


ANIMALS = ("fox", "dog", "owl", "bee", "cat", "ant", "cow", "elk")
PLACES = ("Paris", "Fuji", "Rome", "Oslo", "Lima", "Bonn")


def facts(count: int) -> EditSet:
    """Facts with a paraphrase, and for most of them an unrelated question with an answer."""
    return EditSet(
        Edit(
            f"Where does the {ANIMALS[i % 8]} number {i} live?",
            f"{PLACES[i % 6]} please",
            id=f"fact-{i}",
            paraphrases=(f"The home of the {ANIMALS[i % 8]} number {i} is where?",),
            locality=(Probe(f"What is {PLACES[(i + 1) % 6]}?", "a b c"),) if i % 3 else (),
        )
        for i in range(count)
    )


def quick(**settings: Any) -> HypernetConfig:
    """Small networks, few edits at once, a fixed first step size."""
    few = {
        "format": "plain",
        "layers": (1, 2),
        "rank": 8,
        "blocks": 2,
        "batch": 4,
        "at_once": 3,
        "step_size": 0.3,
        "preservation": 0,
    }
    return HypernetConfig.from_mapping({**few, "learning_rate": 1e-3, **settings})


def prompts(name: str = "plain") -> PromptFormat:
    return PromptFormat.of(name, tiny_tokenizer())


NOTHING = Fixed(SecondMoments({}, {}, "nothing"))


def trained(
    config: HypernetConfig,
    count: int = 14,
    model: EditableModel | None = None,
    validation: EditSet | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress | None = None,
) -> Hypernet:
    """A hypernetwork of the tiny Llama."""
    view = model or EditableModel.of(tiny_model())
    kept, told = checkpoints or NoCheckpoints(), progress or Silent()
    with borrowed(view.model):
        return train_hypernet(view, prompts(), facts(count), validation, NOTHING, config, kept, told)


def trained_and_saved(out: Path, settings: dict[str, Any]) -> None:
    """What each of several processes does that train together."""
    network = trained(quick(**settings))
    if is_first():
        network.save_pretrained(out)
