"""What an update must leave alone, fixed for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_edit.edits import Edit
from hf_edit.models.editable import EditableLinear
from hf_edit.prompting import Encoded
from hf_edit.statistics.moments import SecondMoments


@dataclass(frozen=True)
class Fixed:
    """These moments and texts, whatever is asked."""

    statistics: SecondMoments
    asked: Sequence[Encoded] = ()
    alike: Sequence[Encoded] = ()
    earlier: Sequence[Encoded] = ()

    def moments(self, linears: Sequence[EditableLinear]) -> SecondMoments:
        assert {linear.name for linear in linears} <= {n for m in self.statistics.matrices.values() for n in m}
        return self.statistics

    def conversations(self) -> Sequence[Encoded]:
        return self.asked

    def strangers(self, edits: Sequence[Edit], count: int) -> Sequence[Encoded]:
        assert edits and count > 0
        return self.alike
