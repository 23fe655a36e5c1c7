"""Answers that one solve loses weigh more in the next, and everything else is given up last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor

from hf_edit.methods.joining.asked import Asked
from hf_edit.methods.joining.config import JoinSettings
from hf_edit.methods.joining.update import PRESERVATIONS, Join, Joined, still_said
from hf_edit.methods.training.texts import prepared
from hf_edit.models.editable import EditableModel
from hf_edit.prompting import Encoded
from hf_edit.statistics.moments import SecondMoments
from tests.methods.preserving import Fixed
from tests.tiny import tiny_model


LAYER = 1
TEXTS = [Encoded((3, 9, 4, 7, 5), 2), Encoded((3, 8, 6), 2)]  # answers of three tokens and of one

Told = Callable[[float, int], Sequence[Sequence[float]]]


def join_of(settings: JoinSettings, told: Told, alone: Sequence[bool], monkeypatch: pytest.MonkeyPatch):
    """A join of two edits, whose margins are as told by lambda and round, and what it solved for."""
    view = EditableModel.of(tiny_model(dtype=torch.float64))
    linear = view.linears[LAYER]
    moments = SecondMoments({"text": {linear.name: torch.eye(linear.d_in, dtype=torch.float64)}}, {"text": 9}, "drawn")
    join = Join(view, [linear], Fixed(moments), settings)
    for text in prepared(view, TEXTS, linear.layer):
        values = {linear.name: torch.ones(len(text.ids) - 1, linear.d_out, dtype=torch.float64)}
        join.add(Asked(text, values))
    asked: list[tuple[float, list[list[float]]]] = []
    rounds: dict[float, int] = {}

    def solved(self: Join, preservation: float, weights: Mapping[object, Tensor]) -> Joined:
        asked.append((preservation, [weights[edit].tolist() for edit in self._edits if edit in weights]))
        rounds[preservation] = rounds.get(preservation, -1) + 1
        margins = [torch.tensor(one) for one in told(preservation, rounds[preservation])]
        return Joined({}, preservation, {}, margins)

    monkeypatch.setattr(Join, "_solved", solved)
    monkeypatch.setattr(Join, "right_alone", lambda self: list(alone))
    return join, asked


def test_a_token_that_goes_wrong_weighs_more_and_its_edit_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    join, asked = join_of(
        JoinSettings(),
        lambda _, turn: [[3.0, -1.0 if turn < 2 else 0.1, 0.2], [2.0]],
        [True, True],
        monkeypatch,
    )
    joined = join.solved()
    assert joined.right == [True, True] and joined.preservation == PRESERVATIONS[0]
    assert asked == [
        (PRESERVATIONS[0], []),
        (PRESERVATIONS[0], [[2.0, 2.0, 16.0, 16.0], [1.0, 1.0]]),  # token by token, one that predicts it each
        (PRESERVATIONS[0], [[4.0, 4.0, 256.0, 256.0], [1.0, 1.0]]),
    ]


def test_a_smaller_lambda_is_taken_only_where_weights_do_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    join, asked = join_of(
        JoinSettings(rounds=2),
        lambda given, _: [[1.0, 1.0, 1.0 if given <= 30 else -1.0], [1.0]],
        [True, True],
        monkeypatch,
    )
    assert join.solved().preservation == 30
    assert [preservation for preservation, _ in asked] == [300, 300, 100, 100, 30]


def test_what_its_own_values_do_not_teach_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    join, asked = join_of(JoinSettings(), lambda *_: [[1.0, 1.0, -1.0], [1.0]], [False, True], monkeypatch)
    assert join.solved().right == [False, True] and len(asked) == 1


def test_where_none_keeps_all_the_largest_that_keeps_most_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    join, asked = join_of(
        JoinSettings(rounds=1),
        lambda given, _: [[-1.0] * 3, [1.0 if given <= 100 else -1.0]],
        [True, True],
        monkeypatch,
    )
    joined = join.solved()
    assert (joined.preservation, joined.right) == (100, [False, True])
    assert [preservation for preservation, _ in asked] == list(PRESERVATIONS)


def test_a_given_lambda_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    join, asked = join_of(
        JoinSettings(preservation=7.0, rounds=3), lambda *_: [[-1.0] * 3, [1.0]], [True, True], monkeypatch
    )
    assert join.solved().preservation == 7.0 and [preservation for preservation, _ in asked] == [7.0] * 3


@pytest.mark.parametrize(
    ("now", "base", "said"),
    [
        ([0.1, 2.0], [3.0, 2.0], True),
        ([0.0, 2.0], [3.0, 2.0], False),  # what the base says clearly is to stay the likeliest
        ([-0.1, 2.0], [0.0, 2.0], True),  # what it wrote with other rounding may stay as little clear
        ([-0.6, 2.0], [0.0, 2.0], False),
    ],
)
def test_a_text_is_said_as_clearly_as_the_base_says_it(now: list[float], base: list[float], said: bool) -> None:
    assert still_said(torch.tensor(now), torch.tensor(base)) == said
