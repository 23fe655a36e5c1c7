"""Settings of combining packs."""

from __future__ import annotations

from dataclasses import dataclass

from hf_edit.methods.joining.config import JoinSettings
from hf_edit.settings import setting
from hf_edit.statistics.config import StatisticsConfig


@dataclass(frozen=True)
class CombineConfig(JoinSettings):
    """How packs are stacked and edits taken back."""

    reverted_weight: float | None = setting(
        None,
        "Weight of reverted questions with the base's own answers; none: the smallest of 10, 100, 1000 that brings "
        "these back word for word, as far as it loses no other edit; a smaller one where 10 does.",
        at_least=0,
    )
    reverted_tokens: int = setting(
        256, "Tokens of the base's own answer to a reverted question that are held.", at_least=1
    )
    statistics: StatisticsConfig = setting(StatisticsConfig, "Where second moments come from.")
    seed: int = setting(0, "Seed of everything random.", at_least=0)
