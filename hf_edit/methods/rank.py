"""Which rank an update may have."""

from __future__ import annotations

from collections.abc import Sequence


RANK_RULE = "32 for each edit up to 256 in all, then one for each 8 tokens of the answers, 4 to 16 for each edit"


def default_rank(answer_lengths: Sequence[int]) -> int:
    """The rule of `RANK_RULE`, measured in benchmarks/LOG.md.

    Args:
        answer_lengths: tokens of each edit's answer.
    """
    n_edits = len(answer_lengths)
    return max(min(32 * n_edits, 256), 4 * n_edits, min(sum(answer_lengths) // 8, 16 * n_edits))
