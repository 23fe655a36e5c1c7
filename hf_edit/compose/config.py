"""Settings of combining packs."""

from __future__ import annotations

from dataclasses import dataclass

from hf_edit.methods.joining.config import JoinSettings
from hf_edit.settings import setting
from hf_edit.statistics.config import StatisticsConfig


@dataclass(frozen=True)
class CombineConfig(JoinSettings):
    """How packs are stacked and edits taken back."""

    reverted_weight: float = setting(
        10.0,
        "Weight of the tokens of reverted questions, with the base's answers and those taught.",
        at_least=0,
    )
    reverted_tokens: int = setting(
        128, "Tokens of the base's own answer to a reverted question that are held.", at_least=1
    )
    statistics: StatisticsConfig = setting(StatisticsConfig, "Where second moments come from.")
    seed: int = setting(0, "Seed of everything random.", at_least=0)
