"""Documents and examples in seconds: a tiny base, and defaults with which every computation ends after a few steps."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_edit import (
    AlphaEditConfig,
    AnyEditConfig,
    CombineConfig,
    EMSEditConfig,
    EvaluateConfig,
    FinetuneConfig,
    HypernetConfig,
    MemitConfig,
    PolishConfig,
)
from hf_edit.methods.finetune.config import FinetuneTraining
from hf_edit.methods.polish.config import PolishSettings
from hf_edit.methods.training.config import TrainingConfig
from hf_edit.statistics.config import StatisticsConfig
from tests.tiny import SIZES, VOCAB, tiny_tokenizer


QUICK: dict[type, dict[str, Any]] = {
    EvaluateConfig: {"max_new_tokens": 8, "probe_tokens": 4, "drift_questions": 2, "drift_tokens": 4},
    StatisticsConfig: {"tokens": 300, "conversations": 6, "answer_tokens": 4},
    PolishSettings: {"strangers": 1},
    PolishConfig: {"strangers": 1},
    FinetuneConfig: {"strangers": 1},
    CombineConfig: {"reverted_tokens": 16},
    TrainingConfig: {"max_steps": 2},
    FinetuneTraining: {"max_steps": 2},
    AnyEditConfig: {"max_evaluations": 2},
    MemitConfig: {"max_evaluations": 2},
    AlphaEditConfig: {"max_evaluations": 2},
    EMSEditConfig: {"steps": 1},
    HypernetConfig: {"steps": 1, "rank": 4, "blocks": 1, "batch": 2, "step_size": 0.3},
}
"""Settings -> defaults for this while. What is given explicitly still holds."""


def quicken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the defaults in `QUICK`, and how long answers may grow, until the end of the test."""
    monkeypatch.setattr("hf_edit.evaluation.answers.SPARE_TOKENS", 2)
    for settings, defaults in QUICK.items():
        parameters = list(inspect.signature(settings.__init__).parameters.values())[1:]
        values = tuple(defaults.get(parameter.name, parameter.default) for parameter in parameters)
        monkeypatch.setattr(settings.__init__, "__defaults__", values)
        for name, value in defaults.items():
            monkeypatch.setattr(settings.__dataclass_fields__[name], "default", value)  # type: ignore[attr-defined]


def save_tiny_base(path: Path) -> Path:
    """A Llama of two blocks with its tokenizer, whose answers soon stop."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model("llama", **{**SIZES, "num_hidden_layers": 2})
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = list(range(0, VOCAB, 8))
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path
