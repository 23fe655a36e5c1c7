"""Settings of MEMIT and AlphaEdit for short facts."""

from __future__ import annotations

from dataclasses import dataclass

from hf_edit.methods.support import SupportSettings
from hf_edit.settings import Settings, setting
from hf_edit.statistics.config import StatisticsConfig


SPREAD_OVER = 5
"""Blocks that share a target by default."""


@dataclass(frozen=True)
class ShortFactConfig(Settings):
    """What MEMIT and AlphaEdit share: facts about a subject, keyed at the last token of the subject.

    Lengths of vectors are relative to the hidden state at the key and penalties to the second moment, so that one set
    of values serves models of any width and scale. The published absolute values are in brackets.
    """

    format: str | None = setting(
        None, "Prompt format; none: chat if the tokenizer has a template.", choices=("chat", "plain", "qa")
    )
    layers: tuple[int, ...] | None = setting(
        None,
        "Blocks whose MLP output is edited, ascending; none: five from a fifth of the depth on. [five, a quarter up]",
        ascending=True,
    )
    without_subject: str = setting(
        "last_token",
        "What becomes of edits whose prompt names no subject: the last token of the prompt is the key, or they are "
        "refused.",
        choices=("last_token", "refuse"),
    )
    prefixes: int = setting(
        5, "Texts by the model itself, in front of which the prompt is also taught. [20]", at_least=0
    )
    prefix_tokens: int = setting(10, "Tokens of such a text. [10]", at_least=2)
    learning_rate: float = setting(
        0.3, "Adam's first step, as a share of the hidden state's norm. [0.5 per coordinate]", above=0
    )
    max_evaluations: int = setting(25, "Most forward passes per fact. [25]", at_least=1)
    stop_loss: float = setting(
        0.05, "A fact is done when its target's loss is below this. [0.05, KL included]", at_least=0
    )
    clamp: float = setting(0.75, "Longest target, as a multiple of the hidden state's norm. [0.75]", above=0)
    weight_decay: float = setting(0.01, "Weight of |delta| / |h| in the loss. [0.5, of |delta| / |h|^2]", at_least=0)
    kl_weight: float = setting(
        0.0625, "Weight of the KL to the base on '{subject} is a', after the prompt's last token. [0.0625]", at_least=0
    )
    prompt_weight: float = setting(
        1.0, "Share of the moment of invented questions' last tokens that is added to plain text's. [0]", at_least=0
    )
    answer_weight: float = setting(0.3, "The same for their answers' tokens. [0]", at_least=0)
    earlier_weight: float = setting(1.0, "Weight of the tokens of edits taught earlier. [1]", at_least=0)
    batch: int = setting(8, "Facts optimised at once.", at_least=1)
    experts: bool = setting(
        False, "Edit the experts' output maps where they are fused into one parameter, not a map beside them."
    )
    statistics: StatisticsConfig = setting(StatisticsConfig, "Where second moments come from.")
    seed: int = setting(0, "Seed of everything random.", at_least=0)

    def layers_of(self, n_layers: int, *, spread: bool) -> tuple[int, ...]:
        """The edited layers of a model of that depth.

        Args:
            spread: whether a target can be spread over layers there; else the last of the default ones is edited.
        """
        if self.layers is not None:
            return self.layers
        last = min(n_layers - 1, n_layers // 5 + SPREAD_OVER - 1)
        return tuple(range(max(0, last - SPREAD_OVER + 1), last + 1)) if spread else (last,)

    def moment_weights(self) -> dict[str, float]:
        """Weight of each part of the statistics in the second moment C."""
        return {"text": 1.0, "prompt": self.prompt_weight, "answer": self.answer_weight}


@dataclass(frozen=True)
class MemitConfig(SupportSettings, ShortFactConfig):
    """MEMIT (arXiv 2210.07229): a ridge solve against the second moment."""

    preservation: float = setting(
        100.0, "lambda: weight of the second moment in the solve. [15000, of another scale]", above=0
    )
    ridge: float = setting(1e-4, "Added to the moment's diagonal, relative to its mean eigenvalue. [0]", at_least=0)


@dataclass(frozen=True)
class AlphaEditConfig(ShortFactConfig):
    """AlphaEdit (arXiv 2410.02355): a solve inside the null space of the second moment."""

    null_share: float = setting(
        0.05,
        "The null space is what the smallest eigenvalues span that hold at most this share of the second moment's "
        "trace. [eigenvalues below 0.02]",
        above=0,
        at_most=1,
    )
    beta: float = setting(1.0, "Weight of |dW|^2, relative to the moment's mean eigenvalue. [10, absolute]", above=0)
