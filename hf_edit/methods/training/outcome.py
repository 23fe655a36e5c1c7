"""What training reports: every edit's final loss, and a warning that names those it did not teach."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from hf_edit.edits import EditSet
from hf_edit.errors import HfEditWarning
from hf_edit.methods.training.loop import Trained


def receipt_of(edits: EditSet, trained: Trained) -> dict[str, dict[str, Any]]:
    """Per edit its final loss per answer token and whether greedy decoding gives the answer."""
    return {
        edit.id: {"loss": round(loss, 6), "right": right, "steps": trained.steps, "scale": trained.scale}
        for edit, loss, right in zip(edits, trained.losses, trained.right, strict=True)
    }


def warn_of_missed(receipt: Mapping[str, Mapping[str, Any]], trained: Trained) -> None:
    """Name the edits that are not answered as asked."""
    missed = [name for name, figures in receipt.items() if not figures["right"]]
    if missed:
        warnings.warn(
            f"{len(missed)} of {len(receipt)} edits are not answered as asked after {trained.steps} steps: "
            f"{', '.join(missed[:5])}. Raise max_steps of the training, or the rank.",
            HfEditWarning,
            stacklevel=3,
        )
