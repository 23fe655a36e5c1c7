"""One update that does what many were to do, each along its own text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hf_edit.batching import batched
from hf_edit.methods.base import Preservation
from hf_edit.methods.joining.asked import Asked
from hf_edit.methods.joining.config import JoinSettings
from hf_edit.methods.rank import default_rank
from hf_edit.methods.training.answering import alike_in_length, margins_of
from hf_edit.methods.training.texts import Text, prepared
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.models.generation import MARGIN
from hf_edit.models.trace import Trace
from hf_edit.prompting import Encoded
from hf_edit.solvers.joint import JointSolve
from hf_edit.solvers.low_rank import LowRankDelta


PRESERVATIONS = (300.0, 100.0, 30.0, 10.0, 3.0)
"""Where lambda is looked for: more of it spares everything else, less of it gives the edits all that they ask for."""
AT_UNSURE, ALONG_UNSURE = 8.0, 2.0
"""What the weight of a token that is not clearly the likeliest grows by, and that of all tokens of its edit."""
TOGETHER = 16
"""Texts run at once, where memory allows."""


class Join:
    """The solves of some linears, one behind the other, over all edits, which come in any order.

    What an edit asks for is where its own values bring the model behind each linear. The first linear is asked for
    these values. The keys of the next are found with what was solved before in place, and it is asked for all that is
    still missing there: what one solve leaves undone, or does too much, later ones make good. (MEMIT, algorithm 1,
    spreads one target over layers in the same way.)

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
        self._collected = preserve.moments(linears)
        self._model, self._settings = model, settings
        self._linears = {linear.name: linear for linear in linears}
        self._first = linears[0].layer
        # those that add all that is added in their block, and as it is
        layers = [linear.layer for linear in linears]
        own = {linear.name for linear in model.linears if layers.count(linear.layer) == 1}
        self._in_stream = own if model.writes_residual else set()
        self._order: list[str] = []  # in which the model runs through the linears
        self._edits: list[_Wanted] = []
        self._held: dict[Text, _Wanted] = {}
        self._alone: dict[_Wanted, bool] = {}
        self.hold_along(self.entering(preserve.earlier), settings.earlier_weight)

    def add(self, asked: Asked) -> None:
        """An edit is to get what it asks for."""
        self._edits.append(self._wanted(asked.text, asked.values, 1.0))

    def entering(self, texts: Sequence[Encoded]) -> list[Text]:
        """Texts as the base runs over them up to the first edited block."""
        return prepared(self._model, texts, self._first)

    def hold_along(self, texts: Sequence[Text], weight: float) -> None:
        """The model is to stay what the base is along these texts; a weight given before is replaced."""
        for text in texts:
            held = self._held.get(text)
            self._held[text] = self._wanted(text, {}, weight) if held is None else replace(held, weight=weight)

    def solved(self) -> Joined:
        """The update of all that was added.

        Least squares spreads what is missed over all tokens alike, and an answer is lost where one token of a hundred
        goes wrong. So where answers are lost, the solve is repeated with more weight on what went wrong, a few times
        over, before more of everything else is given up for them by a smaller lambda.

        Which edits keep their answers depends on them alone, not on the order or grouping in which they came; so do
        the weights and the lambda found by it.
        """
        fixed, best = self._settings.preservation, None
        for preservation in PRESERVATIONS if fixed is None else (fixed,):
            weights: dict[_Wanted, Tensor] = {}
            for _ in range(self._settings.rounds):
                joined = self._solved(preservation, weights)
                if best is None or sum(joined.right) > sum(best.right):
                    best = joined
                if all(joined.right):
                    return joined
                wanted = self.right_alone()
                if all(ok for ok, one in zip(joined.right, wanted, strict=True) if one):
                    return joined
                for edit, margins, one in zip(self._edits, joined.margins, wanted, strict=True):
                    if one:
                        weights[edit] = _emphasised(edit, weights.get(edit), margins.cpu())
        assert best is not None
        return best

    @torch.no_grad()
    def _solved(self, preservation: float, weights: Mapping[_Wanted, Tensor]) -> Joined:
        """One solve of each linear.

        Args:
            weights: (T - 1,) of the tokens of edits, where that is not 1.
        """
        rank = self._settings.rank or default_rank([len(edit.text.labels) for edit in self._edits])
        dtype = torch.promote_types(self._model.dtype, torch.float32)
        deltas: dict[str, LowRankDelta] = {}
        lost: dict[str, float] = {}
        groups = self._together()
        streams = {one: one.text.entering for group in groups for one in group}  # (T, d), entering `block`
        block = self._first
        for linear in map(self._linears.__getitem__, self._order):
            solve = JointSolve(linear.d_out, self._moment(linear), self._settings.ridge)
            work = partial(self._asked_of, linear, block, streams, weights, bool(deltas))
            with self._model.updated(deltas):
                for group in groups:
                    for *asked, reached in self._model.memory.in_parts("joining", group, work, _tokens):
                        solve.add(*asked)
                        streams |= reached
            block = linear.layer
            delta, error = solve.solve(preservation, rank)
            if delta.rank:
                deltas[linear.name], lost[linear.name] = delta.to(dtype), round(error, 6)
        ends = [replace(edit.text, states=streams[edit]) for edit in self._edits]  # from the last block on
        return Joined(deltas, preservation, lost, self.margins(ends, deltas, block))

    def margins(
        self, texts: Sequence[Text], deltas: Mapping[str, LowRankDelta], first: int | None = None
    ) -> list[Tensor]:
        """As `margins_of`, run in one order whatever theirs is.

        Args:
            first: the block that the texts' states enter; none: the first edited one.
        """
        first = self._first if first is None else first
        order = sorted(range(len(texts)), key=lambda i: texts[i].ids.tolist())
        found: dict[int, Tensor] = {}
        for part in batched(order, TOGETHER):
            margins = margins_of(self._model, first, [texts[i] for i in part], deltas)
            found |= zip(part, margins, strict=True)
        return [found[i] for i in range(len(texts))]

    def right_alone(self) -> list[bool]:
        """Per edit, whether its own values alone give its answer, token for token."""
        for edit in self._edits:
            if edit not in self._alone:
                text = replace(edit.text, states=edit.text.entering)  # found before anything is in place
                with self._model.shifted({name: value[None] for name, value in edit.values.items()}):
                    (margins,) = margins_of(self._model, self._first, [text], {})
                self._alone[edit] = bool((margins > 0).all())
        return [self._alone[edit] for edit in self._edits]

    def _moment(self, linear: EditableLinear) -> Tensor:
        """(d_in, d_in): combined anew each time, as those of all linears would be most of what the solves hold."""
        weights = self._settings.moment_weights()
        ((_, C),) = self._collected.combined_each([linear.name], weights, self._model.device)
        return C

    def _together(self) -> list[Sequence[_Wanted]]:
        """All texts, those of like length in one group: the same groups whatever order they came in."""
        every = sorted([*self._edits, *self._held.values()], key=lambda one: (one.text.ids.tolist(), one.weight))
        alike = alike_in_length([_tokens(one) for one in every])
        return [part for some in alike for part in batched([every[i] for i in some], TOGETHER)]

    def _asked_of(
        self,
        linear: EditableLinear,
        block: int,
        streams: Mapping[_Wanted, Tensor],
        weights: Mapping[_Wanted, Tensor],
        moved: bool,
        part: Sequence[_Wanted],
    ) -> tuple[Tensor, Tensor, Tensor, dict[_Wanted, Tensor]]:
        """The linear's keys (n, d_in) over some texts, what is missing there (n, d_out), the weights (n,) of it, and
        of each text what enters the linear's block (T - 1, d), if that is another one than `block`.

        Args:
            block: where `streams` (T, d) enter.
            moved: an update is in place.
        """
        trace = self._run([one.text for one in part], [linear], block, [streams[one] for one in part])
        lengths = [_tokens(one) for one in part]
        there = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]  # (B, T)
        keys, behind = (
            states[there.to(states.device)] for states in (trace.inputs[linear.name], self._behind(linear, trace))
        )
        missing = [
            one.missing(linear.name, own, moved=moved) for one, own in zip(part, behind.split(lengths), strict=True)
        ]
        weighed = [one.weight * weights.get(one, torch.ones(_tokens(one))) for one in part]
        reached: dict[_Wanted, Tensor] = {}
        if linear.layer > block:
            for one, stream in zip(part, trace.entering[linear.layer], strict=True):
                reached[one] = stream[: _tokens(one)].clone()
        return keys.double(), torch.cat(missing).double(), torch.cat(weighed), reached

    @torch.no_grad()
    def _wanted(self, text: Text, values: Mapping[str, Tensor], weight: float) -> _Wanted:
        linears, entering = list(self._linears.values()), text.entering
        with self._model.shifted({name: value[None] for name, value in values.items()}):
            trace = self._run([text], linears, self._first, [entering])
        self._order = list(trace.inputs)
        return _Wanted(text, values, {linear.name: self._behind(linear, trace)[0] for linear in linears}, weight)

    def _run(
        self, texts: Sequence[Text], linears: Sequence[EditableLinear], block: int, streams: Sequence[Tensor]
    ) -> Trace:
        """Texts from a block up to the last of the linears, padded on the right: what enters them, what is behind."""
        ids = pad_sequence([text.ids[:-1] for text in texts], batch_first=True)
        entering = [stream[: len(text.ids) - 1] for text, stream in zip(texts, streams, strict=True)]
        return self._model.trace(
            ids,
            inputs=linears,
            outputs=[linear for linear in linears if linear.name not in self._in_stream],
            entering=[linear.layer for linear in linears if linear.layer > block],
            leaving=[linear.layer for linear in linears if linear.name in self._in_stream],
            start={block: pad_sequence(entering, batch_first=True)},
        )

    def _behind(self, linear: EditableLinear, trace: Trace) -> Tensor:
        """(B, T, d_out): the stream behind the linear's block, or where that says less, the linear's own output."""
        return trace.leaving[linear.layer] if linear.name in self._in_stream else trace.outputs[linear.name]


def still_said(margins: Tensor, base: Tensor) -> bool:
    """Whether a text that the base says is said with an update in place.

    Args:
        margins: (A,), see `margins_of`.
        base: (A,), the base's own. Where one is not above zero, the base, which wrote the text with other rounding,
            stood between two tokens; there the update may leave it as little clear as it was.
    """
    return bool(((margins > 0) | ((base <= 0) & (margins > base - MARGIN))).all())


def _emphasised(edit: _Wanted, weights: Tensor | None, margins: Tensor) -> Tensor:
    """(T - 1,): the weights of an edit's tokens for the next solve, by how well it was answered in the last one.

    What goes wrong at a token may be due to that token's own output, or to what it sees of those before it.

    Args:
        weights: of the last solve; none: 1.
        margins: (A,), see `margins_of`.
    """
    weights = torch.ones(_tokens(edit)) if weights is None else weights.clone()
    unsure = (margins < MARGIN).nonzero()[:, 0]
    if len(unsure):
        weights *= ALONG_UNSURE
        weights[edit.text.start - 1 + unsure] *= AT_UNSURE
    return weights


def _tokens(one: _Wanted) -> int:
    """That predict something."""
    return len(one.text.ids) - 1


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What is to become of a text. Its last token predicts nothing and is left out.

    Args:
        values: linear name -> (T - 1, d_out), what is to be added to its output; a linear that is not named is not to
            change.
        reached: linear name -> (T - 1, d_out), what lies behind it with these values in place.
        weight: of each token.
    """

    text: Text
    values: Mapping[str, Tensor]
    reached: Mapping[str, Tensor]
    weight: float

    def missing(self, name: str, reached: Tensor, *, moved: bool) -> Tensor:
        """(T - 1, d_out): what the linear is still to add where `reached` lies behind it.

        Args:
            moved: an update is in place; without one the values themselves are missing, free of rounding.
        """
        if moved:
            return self.reached[name] - reached
        return self.values[name] if name in self.values else torch.zeros_like(reached)


@dataclass(frozen=True, eq=False)
class Joined:
    """The update of many edits.

    Args:
        deltas: linear name -> change.
        preservation: the lambda that it was solved with.
        lost_to_rank: linear name -> what the bound on its rank cost; see `JointSolve.solve`.
        margins: per edit, in the order in which they were added, (A,): see `margins_of`.
    """

    deltas: dict[str, LowRankDelta]
    preservation: float
    lost_to_rank: dict[str, float]
    margins: Sequence[Tensor]

    @property
    def right(self) -> list[bool]:
        """Per edit, whether its answer is given token for token."""
        return [bool((margins > 0).all()) for margins in self.margins]
