"""Settings of AnyEdit."""

from __future__ import annotations

from dataclasses import dataclass

from hf_edit.errors import ConfigError
from hf_edit.settings import Settings, setting
from hf_edit.statistics.config import StatisticsConfig


@dataclass(frozen=True)
class AnyEditConfig(Settings):
    """AnyEdit (arXiv 2502.05628) with fixed windows and the MEMIT backend.

    Lengths of vectors are relative to the hidden state at the key position and penalties to the second moment, so
    that one set of values serves models of any width and scale. The published absolute values are in brackets.
    """

    backend: str = setting("memit", "How the targets become weights.", choices=("memit",))
    format: str | None = setting(
        None, "Prompt format; none: chat if the tokenizer has a template.", choices=("chat", "plain", "qa")
    )
    layers: tuple[int, ...] | None = setting(
        None, "Blocks whose MLP output is edited, ascending; none: the one at 0.6 of the depth. [five, a quarter up]"
    )
    window: int = setting(20, "Answer tokens per chunk. [40]", at_least=1)
    overlap: int = setting(0, "Tokens shared by neighbouring chunks. [0]", at_least=0)
    learning_rate: float = setting(
        0.3, "Adam's first step, as a share of the hidden state's norm. [0.5 per coordinate]", above=0
    )
    max_evaluations: int = setting(40, "Most forward passes per chunk. [25]", at_least=1)
    stop_loss: float = setting(0.02, "A chunk is done below this loss. [0.01]", at_least=0)
    clamp: float = setting(1.0, "Longest target, as a multiple of the hidden state's norm. [4]", above=0)
    first_clamp: float = setting(
        0.5, "The clamp of the first half of the evaluations; from there it grows to clamp. [4]", above=0
    )
    overshoot: bool | None = setting(
        None,
        "Whether an answer's first chunk has the full clamp from the start, which carries over to other wordings; "
        "none: for one edit, not for several.",
    )
    weight_decay: float = setting(1e-3, "Weight of |delta| / |h|^2 in the loss. [0.001]", at_least=0)
    preservation: float = setting(
        10.0, "lambda: weight of the second moment in the solve. [15000, of another scale]", above=0
    )
    prompt_weight: float | None = setting(
        None,
        "Share of the moment of chat prompts' last tokens that is added to plain text's; none: 0.01 for one edit, so "
        "that other wordings still reach it, and 1 for several, which would otherwise disturb each other. [0]",
        at_least=0,
    )
    answer_weight: float = setting(0.3, "The same for chat answers' tokens. [0]", at_least=0)
    own_weight: float = setting(0.1, "Weight of the edits' own other tokens, K_p. [1]", at_least=0)
    ridge: float = setting(1e-4, "Added to the moment's diagonal, relative to its mean eigenvalue. [0]", at_least=0)
    statistics: StatisticsConfig = setting(StatisticsConfig, "Where second moments come from.")
    seed: int = setting(0, "Seed of everything random.", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlap >= self.window:
            raise ConfigError(f"overlap = {self.overlap} is not below window = {self.window}.", "Lower the overlap.")
        if self.layers == ():
            raise ConfigError("layers = [] names no layer.", "Give at least one, or leave the setting out.")
        if self.first_clamp > self.clamp:
            raise ConfigError(f"first_clamp = {self.first_clamp:g} is above clamp = {self.clamp:g}.", "Lower it.")
        if self.layers is not None and list(self.layers) != sorted(set(self.layers)):
            raise ConfigError(f"layers = {list(self.layers)} are not ascending.", "Give each layer once, in order.")

    def first_clamp_of(self, chunk: int, n_edits: int) -> float:
        """The clamp with which this chunk of an answer begins, in a pack of `n_edits`."""
        overshoot = n_edits == 1 if self.overshoot is None else self.overshoot
        return self.clamp if overshoot and chunk == 0 else self.first_clamp

    def moment_weights(self, n_edits: int) -> dict[str, float]:
        """Weight of each part of the statistics in the second moment C, for a pack of `n_edits`."""
        prompt_weight = self.prompt_weight
        if prompt_weight is None:
            prompt_weight = 0.01 if n_edits == 1 else 1.0
        return {"text": 1.0, "prompt": prompt_weight, "answer": self.answer_weight}
