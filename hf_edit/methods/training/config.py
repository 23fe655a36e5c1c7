"""Settings of training."""

from __future__ import annotations

from dataclasses import dataclass

from hf_edit.settings import Settings, setting


FEW = 4
"""Edits that are few: more of them answer other wordings less often, which larger updates make up for."""
SIZED = 16
"""Edits whose update may be as large as `size_weight` says."""


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """How an update is trained, whatever its form."""

    learning_rate: float | None = setting(
        None,
        "Adam's step size on the factors, as a share of the hidden state's entries; none: 0.0015 for one edit, half "
        "of it for several, which pull to and fro.",
        above=0,
    )
    batch: int = setting(8, "Texts per step, drawn with probability proportional to their last loss.", at_least=1)
    max_steps: int = setting(60, "Most steps, for as many texts as a batch holds; more texts get more.", at_least=1)
    stop_loss: float = setting(0.03, "Done when every answer is right and their mean loss is below this.", at_least=0)
    focus: float = setting(
        0.2,
        "Once the mean loss is below stop_loss: the share of an answer's loss that is the mean over its tokens that "
        "are not clearly the likeliest yet.",
        at_least=0,
        at_most=1,
    )
    size_weight: float | None = setting(
        None,
        "Weight of tr(dW C dW^T), what the update moves elsewhere, measured by the hidden state's entries; as a share "
        "of the loss that is left. None: 0.7 for up to four edits, half of it for more; beyond sixteen it is shared "
        "among them, as each needs its own.",
        at_least=0,
    )
    drift_weight: float = setting(2.0, "Weight of the KL divergence to the base on its own answers.", at_least=0)
    drift_share: float = setting(0.5, "Conversations per step for the divergence, by text of the step.", above=0)
    shrink: bool = setting(True, "Scale the finished update down as far as every answer stays right and sure.")

    def size_share(self, n_edits: int) -> float:
        """Weight of the size for so many edits together: what they need adds up, while their loss is a mean."""
        weight = (0.7 if n_edits <= FEW else 0.35) if self.size_weight is None else self.size_weight
        return weight * min(1.0, SIZED / n_edits)

    def step_size(self, n_edits: int) -> float:
        """Adam's step size for so many edits together."""
        return self.learning_rate or (1.5e-3 if n_edits == 1 else 7.5e-4)
