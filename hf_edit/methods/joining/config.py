"""Settings of joining edits by one solve."""

from __future__ import annotations

from dataclasses import dataclass

from hf_edit.settings import setting
from hf_edit.statistics.config import MomentWeights


@dataclass(frozen=True)
class JoinSettings(MomentWeights):
    """One least-squares solve per linear over the keys and values of all edits."""

    preservation: float | None = setting(
        None,
        "lambda: weight of the second moment of everything else; none: the largest from 300 down to 3 at which every "
        "edit keeps its answer that keeps it at 3.",
        above=0,
    )
    earlier_weight: float = setting(1.0, "Weight of the tokens of edits taught before.", at_least=0)
    rank: int | None = setting(
        None,
        "Largest rank per linear; none: 32 for each edit up to 256 in all, then one for each 8 tokens of the answers, "
        "4 for each edit at least.",
        at_least=1,
    )
