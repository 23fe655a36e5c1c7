"""What a merge would lose, before it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_edit.compose.adapters import Pack
from hf_edit.compose.merge_plan import Host, MergePlan, Receipt
from hf_edit.compose.rounding import MergeLoss, Rounding


MIN_SURVIVAL = 0.9
"""Below it, keeping a pack attached is advised. On a 135M model, long answers whose update was scaled down were still
given word for word at 0.8 of it and no longer at 0.7."""


@dataclass(frozen=True)
class MergeReport:
    """How much of packs survives rounding to the dtype of the weights.

    Args:
        rounding: `nearest` or `compensated`.
        predicted: full module name -> loss, from a sample of rows.
        measured: the same from all rows; None where it was not measured.
    """

    rounding: Rounding
    predicted: Mapping[str, MergeLoss]
    measured: Mapping[str, MergeLoss] | None = None

    @property
    def total(self) -> MergeLoss:
        """Of all modules together, measured where that was done."""
        return MergeLoss.total((self.measured or self.predicted).values())

    @property
    def advice(self) -> str | None:
        """What to do instead where too much is lost."""
        return advice_on(self.total, self.rounding)

    def to_json(self) -> dict[str, Any]:
        """All figures, per module and in all."""
        document: dict[str, Any] = {"rounding": self.rounding, "advice": self.advice}
        for kind, losses in (("predicted", self.predicted), ("measured", self.measured)):
            if losses is not None:
                modules = {name: loss.to_json() for name, loss in losses.items()}
                document[kind] = {"all": MergeLoss.total(losses.values()).to_json(), "modules": modules}
        return document


def merge_report(
    model: Host,
    packs: Pack | Sequence[Pack],
    *,
    rounding: Rounding = "nearest",
    measure: bool = False,
    onto: Receipt | None = None,
) -> MergeReport:
    """How much of packs would survive a merge into the model's dtype. The model is only read.

    The prediction takes at most 256 rows of each weight; measuring takes all, and as long as merging.

    Args:
        packs, rounding, onto: as for `merge`.
        measure: measure as well as predict.

    Raises:
        HfEditError: as `merge`.
    """
    plan = MergePlan.of(model, packs, rounding, onto)
    predicted = {name: plan.merging(name).predicted() for name in plan.deltas}
    measured = {name: plan.merging(name).rounded()[1] for name in plan.deltas} if measure else None
    return MergeReport(rounding, predicted, measured)


def advice_on(loss: MergeLoss, rounding: Rounding) -> str | None:
    """What to do instead of a merge with this loss, if it is too much."""
    if loss.survival >= MIN_SURVIVAL:
        return None
    compensated = ', or merge with rounding="compensated"' if rounding == "nearest" else ""
    return (
        f"Only {loss.survival:.0%} of the change survives rounding to the dtype of the weights: keep the pack "
        f"attached, or load the base in float32 and merge there{compensated}."
    )
