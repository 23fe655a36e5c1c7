"""One update that does what many were to do, each along its own text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hf_edit.methods.base import Preservation
from hf_edit.methods.joining.asked import Asked
from hf_edit.methods.joining.config import JoinSettings
from hf_edit.methods.layers import default_rank
from hf_edit.methods.training.loop import answers
from hf_edit.methods.training.texts import Text, inputs_along, prepared
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.prompting import Encoded
from hf_edit.solvers.joint import JointSolve
from hf_edit.solvers.low_rank import LowRankDelta


PRESERVATIONS = (300.0, 200.0, 140.0, 100.0, 70.0, 50.0, 35.0, 25.0, 17.0, 12.0, 8.0, 5.0, 3.0)
"""Where lambda is looked for: more of it spares everything else, less of it gives the edits all that they ask for."""


class Join:
    """The solves of some linears, filled edit by edit in any order.

    Args:
        preserve: for the second moments, and for the edits taught before, whose tokens are held.
    """

    def __init__(
        self,
        model: EditableModel,
        linears: Sequence[EditableLinear],
        preserve: Preservation,
        settings: JoinSettings,
    ) -> None:
        moments = dict(
            preserve.moments(linears).combined_each(
                [linear.name for linear in linears], settings.moment_weights(), model.device
            )
        )
        self._model, self._linears, self._settings = model, linears, settings
        self._first = linears[0].layer
        self._texts: list[Text] = []
        self._solves = {
            linear.name: JointSolve(linear.d_out, moments[linear.name], settings.ridge) for linear in linears
        }
        self.hold_along(self.entering(preserve.earlier), settings.earlier_weight)

    def add(self, asked: Asked) -> None:
        """An edit is to get what it asks for."""
        self._texts.append(asked.text)
        for name, solve in self._solves.items():
            if name in asked.values:
                solve.add(asked.keys[name], asked.values[name])
            else:
                solve.hold(asked.keys[name])

    def entering(self, texts: Sequence[Encoded]) -> list[Text]:
        """Texts as the base runs over them up to the first edited block."""
        return prepared(self._model, texts, self._first)

    def hold_along(self, texts: Sequence[Text], weight: float) -> None:
        """Nothing is to change along these texts, as the base runs over them."""
        for _, inputs in inputs_along(self._model, self._linears, texts, self._first):
            for name, solve in self._solves.items():
                solve.hold(inputs[name], weight)

    def solved(self) -> Joined:
        """The update of all that was added.

        Which edits keep their answers depends on them alone, not on the order or grouping in which they came; so does
        the lambda found by it.
        """
        if self._settings.preservation is not None:
            return self._solved(self._settings.preservation)
        best = self._solved(PRESERVATIONS[-1])
        wanted = sum(best.right)
        low, high = 0, len(PRESERVATIONS) - 1
        while low < high:  # the first of PRESERVATIONS that keeps as many answers as the last
            middle = (low + high) // 2
            tried = self._solved(PRESERVATIONS[middle])
            if sum(tried.right) >= wanted:
                best, high = tried, middle
            else:
                low = middle + 1
        return best

    def _solved(self, preservation: float) -> Joined:
        rank = self._settings.rank or default_rank(len(self._texts))
        dtype = torch.promote_types(self._model.dtype, torch.float32)
        deltas: dict[str, LowRankDelta] = {}
        lost: dict[str, float] = {}
        for name, solve in self._solves.items():
            delta, error = solve.solve(preservation, rank)
            if delta.rank:
                deltas[name], lost[name] = delta.to(dtype), round(error, 6)
        return Joined(deltas, preservation, lost, self.given(self._texts, deltas))

    @torch.no_grad()
    def given(self, texts: Sequence[Text], deltas: Mapping[str, LowRankDelta]) -> list[bool]:
        """Whether an update gives the answer of each text, token for token."""
        return [bool(answers(self._model, self._first, [text], deltas)[1].all()) for text in texts]


@dataclass(frozen=True, eq=False)
class Joined:
    """The update of many edits.

    Args:
        deltas: linear name -> change.
        preservation: the lambda that it was solved with.
        lost_to_rank: linear name -> what the bound on its rank cost; see `JointSolve.solve`.
        right: per edit, in the order in which they were added, whether its answer is given token for token.
    """

    deltas: dict[str, LowRankDelta]
    preservation: float
    lost_to_rank: dict[str, float]
    right: list[bool]
