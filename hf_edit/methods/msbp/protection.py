"""What no step may move, before the first one."""

from __future__ import annotations

from collections.abc import Sequence

from hf_edit.methods.base import Preservation
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.solvers.shift import Protected
from hf_edit.statistics.config import MomentWeights


def protected_by_moments(
    model: EditableModel,
    linears: Sequence[EditableLinear],
    preserve: Preservation,
    weight: float,
    parts: MomentWeights,
) -> dict[str, Protected]:
    """Linear name -> Q = I + weight * C, C the second moment of what must not change; the identity at weight 0."""
    protected = {linear.name: Protected(linear.d_in, model.device) for linear in linears}
    if weight:
        moments = preserve.moments(linears)
        for name, moment in moments.combined_each(protected, parts.moment_weights(), model.device):
            protected[name].add_moment(moment, weight)
    return protected
