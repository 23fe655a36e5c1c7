"""Settings of the training of hypernetworks."""

from __future__ import annotations

from dataclasses import dataclass

from hf_edit.errors import ConfigError
from hf_edit.methods.msbp.config import CalibrationConfig, KeyWeights, MultiStepConfig, Preserving, refuse_for_mend
from hf_edit.methods.msbp.method import EMSEdit, Malmen, Mend, MultiStep, RLEdit
from hf_edit.settings import setting
from hf_edit.statistics.config import StatisticsConfig


TRAINED: dict[str, type[MultiStep]] = {method.name: method for method in (EMSEdit, Malmen, Mend, RLEdit)}
"""The methods that have a network."""


@dataclass(frozen=True)
class TextAlone(KeyWeights):
    """Running text counts, questions do not.

    Networks that are trained with questions held raise eta until these questions are answered at the cost of running
    text: fewer paraphrases, more perplexity, though more unrelated questions stay as they were.
    """

    prompt_weight: float = setting(0.0, "Weight of the moment of invented questions' last tokens.", at_least=0)
    answer_weight: float = setting(0.0, "Weight of the moment of their answers' tokens.", at_least=0)


@dataclass(frozen=True)
class HypernetConfig(Preserving):
    """What a hypernetwork is trained for, and how."""

    method: str = setting("emsedit", "The method that it is for.", choices=tuple(TRAINED))
    format: str | None = setting(
        None, "Prompt format; none: chat if the tokenizer has a template.", choices=("chat", "plain", "qa")
    )
    layers: tuple[int, ...] | None = setting(
        None,
        "Blocks whose MLP output is edited, ascending; none: those from 0.6 to 0.97 of the depth.",
        ascending=True,
    )
    steps: int = setting(2, "Backward passes per batch.", at_least=1)
    rank: int = setting(
        1024, "Rank of the networks' blocks, at most half of the width of key and gradient.", at_least=1
    )
    blocks: int = setting(4, "Blocks of every network.", at_least=1)
    step_networks: bool | None = setting(
        None,
        "A network for each step, of rank over 1, 2, ...; none: for emsedit on sequences, else one for all steps.",
    )
    batch: int = setting(50, "Edits per batch.", at_least=1)
    horizon: int = setting(
        1,
        "Batches that the model learns before it starts anew: 1 for batch editing, else as many as at use.",
        at_least=1,
    )
    chained: bool = setting(
        True, "Each step starts from what the one before left, as at use; false: from the model without the batch."
    )
    protect_earlier: float = setting(
        1.0, "Weight of the keys of a sequence's earlier batches in the ridge.", at_least=0
    )
    step_size: float | None = setting(
        None, "eta to begin with; none: what calibration takes on the first batch without a network.", above=0
    )
    moments: TextAlone = setting(TextAlone, "What the second moment of what must not change is made of.")
    learning_rate: float = setting(1e-5, "Adam's step size on the networks.", above=0)
    coefficient_rate: float = setting(
        1e-3, "Adam's step size on the logarithms of eta and lambda; 0 keeps them.", at_least=0
    )
    size_weight: float | None = setting(
        None,
        "Weight of the squared norm of the update, in units of that of the first batch's update before training; "
        "none: 0.4 for emsedit, 0.1 for rledit, else 0.",
        at_least=0,
    )
    locality_weight: float | None = setting(
        None, "Weight of the KL divergence to the base on unrelated questions; none: 0.6, for emsedit 0.", at_least=0
    )
    window: int | None = setting(
        None, "Batches, the last ones, whose paraphrases count after each; none: 10 for rledit, else 1.", at_least=1
    )
    decay: float = setting(0.95, "What a batch counts less for each after it.", above=0, at_most=1)
    clip: float = setting(1.0, "Most that the norm of a gradient may be.", above=0)
    accumulate: int = setting(
        1,
        "Batches per step of Adam, whose mean gradient it takes; at 1 without chaining, each step of a batch has its "
        "own, as published.",
        at_least=1,
    )
    epochs: int = setting(1, "Passes over the edits.", at_least=0)
    validation: float = setting(
        0.1,
        "Share of the edits, at most those of one sequence, kept to validate on where none are given.",
        at_least=0,
        at_most=0.5,
    )
    validate_every: int = setting(5, "Sequences between validations.", at_least=1)
    patience: int = setting(3, "Validations without a better loss after which training ends.", at_least=1)
    at_once: int = setting(8, "Texts run together.", at_least=1)
    calibration: CalibrationConfig = setting(CalibrationConfig, "How eta is found.")
    statistics: StatisticsConfig = setting(
        StatisticsConfig, "Where unrelated questions come from if the edits have none with answers."
    )
    seed: int = setting(0, "Seed of everything random.", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.chained and self.horizon > 1:
            raise ConfigError(
                f"chained = False undoes every step, and a horizon of {self.horizon} batches keeps them.",
                "Leave one of the two out.",
            )
        if not TRAINED[self.method].rule.solve:
            refuse_for_mend(self, ["protect_earlier"])

    def layers_of(self, n_layers: int) -> tuple[int, ...]:
        """The edited layers of a model of that depth."""
        return MultiStepConfig(layers=self.layers).layers_of(n_layers)

    def ranks(self, width: int) -> tuple[int, ...]:
        """Rank of each set of networks, for rows [key | gradient] of that width."""
        rank = min(self.rank, max(1, width // 2))
        own = self.method == "emsedit" and self.horizon > 1 if self.step_networks is None else self.step_networks
        return tuple(max(1, rank // (step + 1)) for step in range(self.steps)) if own else (rank,)

    @property
    def size(self) -> float:
        """Weight of the squared norm of the update, relative to its first."""
        return {"emsedit": 0.4, "rledit": 0.1}.get(self.method, 0.0) if self.size_weight is None else self.size_weight

    @property
    def locality(self) -> float:
        """Weight of the divergence on unrelated questions."""
        return (0.0 if self.method == "emsedit" else 0.6) if self.locality_weight is None else self.locality_weight

    @property
    def gradients_per_update(self) -> int:
        """Whose mean a step of Adam takes: one comes of every batch, unchained one of each of its steps."""
        return self.accumulate if self.chained or self.accumulate == 1 else self.accumulate * self.steps

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the paraphrases of the last batches, the last one first; they add up to 1."""
        window = (10 if self.method == "rledit" else 1) if self.window is None else self.window
        raw = [self.decay**age for age in range(min(window, self.horizon))]
        return tuple(weight / sum(raw) for weight in raw)
