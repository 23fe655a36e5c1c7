"""Settings of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from hf_edit.methods.training.config import TrainingConfig
from hf_edit.settings import Settings, setting
from hf_edit.statistics.config import StatisticsConfig


@dataclass(frozen=True)
class FinetuneTraining(TrainingConfig):
    """Training of plain LoRA factors: their size says nothing about what they disturb, so it is not weighed.

    All tokens count alike, as in fine-tuning.
    """

    learning_rate: float = setting(4e-3, "Adam's step size on the factors.", above=0)
    stop_loss: float = setting(0.015, "Done when every answer is right and their mean loss is below this.", at_least=0)
    focus: float = setting(
        0.0,
        "Below stop_loss: the share of an answer's loss that is the mean over what is still wrong.",
        at_least=0,
        at_most=1,
    )
    drift_weight: float = setting(1.0, "Weight of the KL divergence to the base on its own answers.", at_least=0)
    size_weight: float = setting(0.0, "Weight of |dW|^2, as a share of the loss that is left.", at_least=0)
    shrink: bool = setting(False, "Scale the finished update down as far as every answer stays right and sure.")


@dataclass(frozen=True)
class FinetuneConfig(Settings):
    """LoRA on the MLP outputs of the upper half, with the base's own answers held: the baseline to beat."""

    format: str | None = setting(
        None, "Prompt format; none: chat if the tokenizer has a template.", choices=("chat", "plain", "qa")
    )
    layers: tuple[int, ...] | None = setting(
        None,
        "Blocks whose MLP output is edited, ascending; none: those from 0.45 to 0.8 of the depth.",
        ascending=True,
    )
    rank: int = setting(32, "Rank per block.", at_least=1)
    conversations: int = setting(
        96,
        "Questions with the base's own answers, from the statistics, that the divergence is taken over.",
        at_least=0,
    )
    strangers: int = setting(
        8,
        "Questions per edit of the same kind, with the base's own answers, for the divergence too; for many edits "
        "fewer, down to one at 256.",
        at_least=0,
    )
    training: FinetuneTraining = setting(FinetuneTraining, "How it is trained.")
    experts: bool = setting(
        False, "Edit the experts' output maps where they are fused into one parameter, not a map beside them."
    )
    statistics: StatisticsConfig = setting(StatisticsConfig, "Where the conversations come from.")
    seed: int = setting(0, "Seed of everything random.", at_least=0)
