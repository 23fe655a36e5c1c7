"""What is reported of an update: every edit's final loss, which edits it teaches, and a warning naming the others."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_edit.edits import EditSet
from hf_edit.errors import HfEditWarning
from hf_edit.methods.base import EditResult
from hf_edit.methods.training.course import Trained
from hf_edit.prompting import Encoded
from hf_edit.solvers.low_rank import LowRankDelta


MISSED_LOSS = 0.5
"""An edit with a target above it will hardly be answered as asked."""
MOST_NAMED = 100
"""Edits that a warning names one by one."""


def result_of(edits: EditSet, trained: Trained, deltas: Mapping[str, LowRankDelta]) -> EditResult:
    """The trained update, with each edit's final loss per answer token and whether greedy decoding gives its answer.

    Warns:
        HfEditWarning: names the edits that are not answered as asked.
    """
    receipt = {
        edit.id: {"loss": round(loss, 6), "right": right, "steps": trained.steps, "scale": trained.scale}
        for edit, loss, right in zip(edits, trained.losses, trained.right, strict=True)
    }
    right = dict(zip(receipt, trained.right, strict=True))
    what = f"are not answered as asked after {trained.steps} steps"
    if trained.rested:
        remedy = "Training came no further: edit more layers, raise the rank, or put fewer edits into a pack."
    else:
        remedy = "Raise max_steps of the training, or the rank."
    warn_of_missed(right, what, remedy)
    return EditResult(deltas, None, receipt)


def told_right(receipt: Mapping[str, Any], ids: Iterable[str]) -> dict[str, bool]:
    """By id, whether an edit is answered as asked, for those of which a pack's receipt says it.

    Training says it among each edit's own figures, a solve of all edits under `right`.
    """
    joint = _mapping(receipt.get("right"))
    told = {id: _mapping(receipt.get(id)).get("right", joint.get(id)) for id in ids}
    return {id: right for id, right in told.items() if isinstance(right, bool)}


def warn_of_missed(right: Mapping[str, bool], what: str, remedy: str) -> None:
    """Warn with an HfEditWarning that names the edits, by id, that are not right, and says `what` they are instead."""
    missed = [id for id, ok in right.items() if not ok]
    if missed:
        more = len(missed) - MOST_NAMED
        rest = f" and {more} more, which the pack's receipt tells" if more > 0 else ""
        warnings.warn(
            f"{len(missed)} of {len(right)} edits {what}: {', '.join(missed[:MOST_NAMED])}{rest}. {remedy}",
            HfEditWarning,
            stacklevel=4,
        )


def warn_of_unreached(losses: Mapping[str, float], part: str, stop_loss: float) -> None:
    """Warn of the edits, by id, with a `part` whose target was not reached; `losses` are those of the worst parts."""
    what = f"have a {part} whose loss stayed above {MISSED_LOSS:g} (stop_loss is {stop_loss:g})"
    warn_of_missed({id: loss <= MISSED_LOSS for id, loss in losses.items()}, what, "Raise max_evaluations or clamp.")


def warn_of_unheld(earlier: Sequence[Encoded], why: str, remedy: str) -> None:
    """Warn with an HfEditWarning of edits taught before, if there are any, where nothing holds their answers."""
    if earlier:
        warnings.warn(
            f"The update may move the answers of {len(earlier)} edits taught earlier: {why}. {remedy}",
            HfEditWarning,
            stacklevel=4,
        )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
