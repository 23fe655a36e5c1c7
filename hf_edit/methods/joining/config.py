"""Settings of joining edits by one solve."""

from __future__ import annotations

from dataclasses import dataclass

from hf_edit.methods.rank import RANK_RULE
from hf_edit.settings import setting
from hf_edit.statistics.config import MomentWeights


@dataclass(frozen=True)
class JoinSettings(MomentWeights):
    """One least-squares solve per linear over the keys and values of all edits."""

    preservation: float | None = setting(
        None,
        "lambda: weight of the second moment of everything else; none: the largest of 300, 100, 30, 10, 3 at which "
        "every edit keeps its answer, or else that at which most do.",
        above=0,
    )
    rounds: int = setting(
        6,
        "Most solves at one lambda: behind each, the edits that are not answered as asked weigh more, and most of all "
        "the tokens that go wrong.",
        at_least=1,
    )
    earlier_weight: float = setting(1.0, "Weight of the tokens of edits taught before.", at_least=0)
    rank: int | None = setting(
        None,
        f"Largest rank per linear; none: {RANK_RULE}.",
        at_least=1,
    )
