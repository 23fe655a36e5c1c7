"""The budget as users give it."""

from __future__ import annotations

import warnings

import pytest

from hf_edit import FinetuneConfig, edit
from hf_edit.errors import ConfigError, HfEditWarning, MemoryBudgetError
from hf_edit.methods.finetune.config import FinetuneTraining
from hf_edit.packs.contents import to_files
from hf_edit.packs.pack import EditPack
from hf_edit.statistics.config import StatisticsConfig
from tests.tiny import tiny_model, tiny_tokenizer


CONFIG = FinetuneConfig(
    rank=2,
    conversations=0,
    training=FinetuneTraining(max_steps=1),
    statistics=StatisticsConfig(tokens=240, conversations=2, answer_tokens=4, length=12, batch=10),
)


def learned(memory_budget: int | str | None) -> EditPack:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HfEditWarning)  # random models learn little
        edits = [{"prompt": "Who?", "target": "Nobody."}]
        return edit(tiny_model(), tiny_tokenizer(), edits, CONFIG, memory_budget=memory_budget)


def test_the_peak_is_known_and_written_nowhere() -> None:
    with_budget, without = learned("1GB"), learned(None)
    assert with_budget.peak_memory is not None and 10_000 < with_budget.peak_memory < 10**9
    assert without.peak_memory is not None
    assert to_files(with_budget, "portable", values=True) == to_files(without, "portable", values=True)


def test_a_budget_that_cannot_be_kept_or_read_is_told() -> None:
    with pytest.raises(MemoryBudgetError, match="or more beside the model, and the memory budget is 4000B"):
        learned("4KB")
    with pytest.raises(ConfigError, match="'much' is no amount of memory"):
        learned("much")
