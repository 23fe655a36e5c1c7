"""The two scores under teacher forcing, one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_edit.evaluation.following import followed
from hf_edit.prompting import PromptFormat


def token_accuracy(
    model: PreTrainedModel, prompts: PromptFormat, questions: Sequence[str], answers: Sequence[str], batch: int = 32
) -> list[float]:
    asked = list(zip(questions, answers, strict=True))
    return [found.accuracy for found in followed(model, prompts, asked, batch)]


def log_probability(
    model: PreTrainedModel, prompts: PromptFormat, questions: Sequence[str], answers: Sequence[str], batch: int = 32
) -> Tensor:
    asked = list(zip(questions, answers, strict=True))
    return torch.tensor([found.log_probability for found in followed(model, prompts, asked, batch)])
