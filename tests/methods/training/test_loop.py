"""When training ends, what it reports, and what it leaves alone; the numbers are held by test_against_reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_edit.edits import Edit, EditSet
from hf_edit.errors import ComputationError, HfEditWarning
from hf_edit.methods.checkpoints import NoCheckpoints
from hf_edit.methods.training import state as state_module
from hf_edit.methods.training.answering import SHORTEST, alike_in_length, answers
from hf_edit.methods.training.config import TrainingConfig
from hf_edit.methods.training.course import Course, Trained, Trainee
from hf_edit.methods.training.ending import SCALES, UNSURE_LOSS, confirmed, shrunk
from hf_edit.methods.training.factors import KeyBasisFactors, LoraFactors
from hf_edit.methods.training.loop import train
from hf_edit.methods.training.outcome import MOST_NAMED, result_of, warn_of_missed
from hf_edit.methods.training.state import FORGOTTEN, PATIENCE_STEPS, WRONG, State
from hf_edit.methods.training.teacher import Teacher
from hf_edit.methods.training.texts import Batch, Text, answer_logits, prepared
from hf_edit.models.editable import EditableModel
from hf_edit.models.generation import MARGIN
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta, summed


FIRST = 2
# a tiny model is sure of nothing: what it was taught keeps a loss of about 4
QUICK: dict[str, Any] = {"learning_rate": 0.08, "max_steps": 60, "stop_loss": 4.6, "drift_weight": 0, "size_weight": 0}


@dataclass
class Told:
    """Remembers the steps it is told of."""

    total: int = 0
    advances: list[int] = field(default_factory=list)

    def stage(self, name: str, total: int) -> None:
        assert name == "training"
        self.total = total

    def step(self, advance: int = 1, **info: float | str) -> None:
        self.advances.append(advance)


def learned(
    view: EditableModel,
    trainees: Sequence[Trainee],
    told: Told | None = None,
    decoys: Sequence[dict[str, LowRankDelta]] = (),
    **training: Any,
) -> tuple[Trained, dict[str, LowRankDelta]]:
    """LoRA of full rank on two blocks, nothing held."""
    factors = LoraFactors(view.linears[FIRST:], 32, torch.float32, torch.Generator().manual_seed(0), view.device)
    config = TrainingConfig(**{**QUICK, **training})
    teacher = Teacher(view, [], FIRST)
    course = Course(view, FIRST, trainees, teacher, config, 0, decoys)
    trained = train(course, factors, NoCheckpoints(), told or Silent())
    return trained, factors.detached()


@pytest.fixture
def texts(view: EditableModel, chat: PromptFormat) -> list[Text]:
    """Two easy ones; the third answers the first question otherwise, so that one of these is always wrong."""
    asked = [("Where?", "please"), ("Who wrote it?", "the fox"), ("Where?", "Mount")]
    return prepared(view, [chat.encode(*text) for text in asked], FIRST)


def fresh(view: EditableModel, text: Text, deltas: dict[str, LowRankDelta]) -> tuple[float, bool]:
    """Loss and verdict under an update."""
    with torch.no_grad(), view.updated(deltas):
        log_probs = answer_logits(view, Batch.of([text]), FIRST).log_softmax(-1)
    losses = -log_probs.gather(-1, text.labels[:, None])
    return float(losses.mean()), bool((log_probs.argmax(-1) == text.labels).all())


def of(texts: Sequence[Text]) -> list[Trainee]:
    return [Trainee(text, judged=True, weight=1.0) for text in texts]


@pytest.mark.parametrize("shrink", [True, False])
@pytest.mark.parametrize("batch", [1, 8])
def test_training_ends_when_all_is_right_and_reports_the_update_as_it_then_is(
    view: EditableModel, texts: list[Text], batch: int, shrink: bool
) -> None:
    """Also where a step sees one text only, so that what it saw of the other is old."""
    told = Told()
    trained, deltas = learned(view, of(texts[:2]), told, batch=batch, shrink=shrink)
    assert trained.steps < told.total == round(60 * 2 / min(batch, 2))
    assert told.advances == [0, *[1] * trained.steps]
    assert trained.right == [True, True]
    for text, loss in zip(texts, trained.losses, strict=False):
        now, right = fresh(view, text, deltas)
        assert loss == pytest.approx(now, abs=1e-4) and right
        assert shrink or now < QUICK["stop_loss"]


def test_training_goes_on_while_an_answer_is_right_but_not_sure(view: EditableModel, texts: list[Text]) -> None:
    told = Told()
    trained, _ = learned(view, of(texts[:1]), told, stop_loss=0.0, max_steps=40, learning_rate=0.04)
    assert trained.right == [True]
    assert trained.steps == told.total == 40 == sum(told.advances)


def test_training_goes_on_while_one_is_wrong(view: EditableModel, texts: list[Text]) -> None:
    trained, deltas = learned(view, of([texts[0], texts[2]]), stop_loss=100.0, max_steps=30, shrink=False)
    assert trained.steps == 30 and not all(trained.right)
    for text, loss, right in zip([texts[0], texts[2]], trained.losses, trained.right, strict=True):
        assert fresh(view, text, deltas) == (pytest.approx(loss, abs=1e-4), right)


def test_training_ends_when_it_has_long_come_no_further(view: EditableModel, texts: list[Text]) -> None:
    trained, _ = learned(view, of(texts[:2]), learning_rate=1e-12, max_steps=100)
    assert trained.rested and trained.steps == 1 + PATIENCE_STEPS
    with pytest.warns(HfEditWarning, match="2 of 2 edits are not answered as asked after 31 steps.*came no further"):
        result_of(EditSet([Edit("Where?", "please"), Edit("Who wrote it?", "the fox")]), trained, {})
    slow = State([0, 1], [1.0] * 200)
    assert not any(slow.rests(step, 8, 1.0) for step in range(150)) and slow.rests(150, 8, 1.0)
    slow.margins[1] = 1.0  # which a stopping loss may wait for
    assert not slow.rests(151, 8, 1.0)


def test_an_update_that_is_becoming_smaller_is_not_at_rest() -> None:
    """Polishing a stack lowers what it moves elsewhere long before it lowers the loss."""
    state = State([0], [1.0])
    state.note([0], torch.tensor([0.06]), torch.tensor([-1.0]))
    assert not any(state.rests(step, 8, 5.0 * 0.99**step) for step in range(100))
    last = 5.0 * 0.99**100
    rests = [state.rests(100 + step, 8, last) for step in (0, PATIENCE_STEPS - 6, PATIENCE_STEPS)]
    assert rests == [False, False, True]


@pytest.mark.parametrize(
    ("count", "end"), [(MOST_NAMED, ""), (MOST_NAMED + 3, " and 3 more, which the pack's receipt tells")]
)
def test_all_missed_edits_are_named_up_to_a_number(count: int, end: str) -> None:
    right = {f"edit-{i}": i == 0 for i in range(count + 1)}
    named = ", ".join(list(right)[1 : MOST_NAMED + 1])
    with pytest.warns(HfEditWarning, match=rf"^{count} of {count + 1} edits are late: {named}{end}\. Hurry\.$"):
        warn_of_missed(right, "are late", "Hurry.")
    warn_of_missed({"a": True}, "are late", "Hurry.")


def test_wordings_help_and_are_not_judged(view: EditableModel, texts: list[Text]) -> None:
    """One that contradicts the edit weighs next to nothing, is never right, and holds nothing up."""
    told = Told()
    other = Trainee(texts[2], judged=False, weight=1e-6)
    trained, deltas = learned(view, [*of(texts[:1]), other], told)
    assert trained.right == [True] and len(trained.losses) == 1
    assert trained.steps < told.total
    assert not fresh(view, texts[2], deltas)[1]


def test_wordings_are_trained(view: EditableModel, texts: list[Text]) -> None:
    alone, with_other = (
        learned(view, [*of(texts[:1]), *extra], stop_loss=0.0, max_steps=20, shrink=False)[1]
        for extra in ([], [Trainee(texts[1], judged=False, weight=0.5)])
    )
    assert fresh(view, texts[1], with_other)[0] < fresh(view, texts[1], alone)[0] - 0.5


def test_an_answer_learned_beside_a_decoy_is_given_with_and_without_it(
    view: EditableModel, texts: list[Text], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoy teaches the same question another answer; the plain sum of the two gives that, or neither."""
    monkeypatch.setattr(state_module, "LONGER", 0.0)  # what is clearer bears the decoy as it is
    steps: dict[str, Any] = {"focus": 0.0, "shrink": False}
    _, decoy = learned(view, of([texts[2]]), **steps)
    _, alone = learned(view, of(texts[:1]), **steps)
    trained, beside = learned(view, of(texts[:1]), decoys=[decoy], max_steps=120, **steps)
    assert not fresh(view, texts[0], summed([alone, decoy]))[1]
    assert trained.right == [True]
    assert fresh(view, texts[0], beside)[1] and fresh(view, texts[0], summed([beside, decoy]))[1]


def test_no_more_than_two_texts_per_judged_one_are_drawn(view: EditableModel, texts: list[Text]) -> None:
    told = Told()
    others = [Trainee(text, judged=False, weight=0.5) for text in [*texts, *texts]]
    learned(view, [*of(texts[:1]), *others], told, max_steps=2, batch=8)
    assert told.total == round(2 * 7 / 2)


def test_training_takes_its_time_until_answers_are_clear() -> None:
    """Right by less than bfloat16 rounds: a quarter of the steps more, unless all become clear before."""

    def steps(margins: Sequence[float]) -> tuple[list[int], int]:
        """When all are asked, and when it ends."""
        state, asked = State([0], [1.0]), []
        for step, margin in enumerate(margins, start=1):
            state.note([0], torch.tensor([0.1]), torch.tensor([margin]))
            if state.asks(step, 1, 0.2):
                asked.append(step)
                if state.enough(step):
                    return asked, step
                state.asked(step)
        raise AssertionError("it never ends")

    assert steps([-1.0] * 9 + [MARGIN]) == ([10], 10)
    assert steps([-1.0] * 9 + [0.1] * 9) == ([10, 13], 13)
    assert steps([-1.0] * 9 + [0.1, 0.2, MARGIN, 0.1]) == ([10, 12], 12)
    assert steps([-1.0] * 9 + [0.1] + [-1.0] * 9 + [0.1]) == ([10, 20], 20)


def test_texts_are_drawn_by_their_loss_and_none_is_forgotten(texts: list[Text]) -> None:
    state = State([0, 1], [1.0, 1.0, 0.5])
    chances = state.chances(0.3)
    assert chances[0] == chances[1] == 2 * chances[2] > 1  # none was drawn yet
    state.note([0, 1, 2], torch.tensor([0.0, 0.4, 0.4]), torch.tensor([True, False, False]))
    assert torch.allclose(state.chances(0.1), torch.tensor([FORGOTTEN, 0.4, 0.2]))
    ending = state.chances(0.3)  # what is judged and wrong comes first
    assert torch.allclose(ending, torch.tensor([FORGOTTEN, 0.4 * WRONG, 0.2]))


def test_in_the_end_all_are_asked_again_from_time_to_time() -> None:
    def asked(count: int, drawn: int, steps: int = 60, stop_loss: float = 2.0) -> list[int]:
        state = State(range(count), [1.0] * count)
        state.note(range(count), torch.ones(count), torch.arange(count) > 0)  # the first is wrong
        found = []
        for step in range(1, steps):
            if state.asks(step, drawn, stop_loss):
                found.append(step)
                state.asked_at = step
        return found

    assert asked(10, 8) == [12, 24, 36, 48]
    assert asked(200, 8) == [13, 26, 39, 52]  # half a pass
    assert asked(8, 8) == []  # each step asks all
    assert asked(10, 8, stop_loss=0.5) == []  # not the end yet
    state = State(range(3), [1.0] * 3)
    paces = []
    for right in (1, 2, 1, 2, 3):
        state.note(range(3), torch.ones(3), torch.arange(3) < right)
        state.asked(0)
        paces.append(state.pace)
    assert paces == [1, 1, 0.5, 0.25, 0.25]  # as long as more are right each time
    done = State([0], [1.0, 1.0])
    done.note([0], torch.tensor([0.1]), torch.tensor([True]))
    assert done.asks(1, 1, 0.2)


def test_several_edits_take_shorter_steps_than_one() -> None:
    assert TrainingConfig().step_size(1) > TrainingConfig().step_size(2) == TrainingConfig().step_size(100)
    assert TrainingConfig(learning_rate=0.5).step_size(1) == TrainingConfig(learning_rate=0.5).step_size(9) == 0.5


# ---- shrinking -------------------------------------------------------------------------------------------------


def test_a_finished_update_shrinks_while_all_stays_right(view: EditableModel, texts: list[Text]) -> None:
    full, whole = learned(view, of(texts[:2]), shrink=False)
    less, scaled = learned(view, of(texts[:2]))
    assert full.scale == 1.0 and less.scale in SCALES and less.steps == full.steps
    for name, delta in scaled.items():
        assert torch.allclose(delta.dense(), less.scale * whole[name].dense(), atol=1e-6)

    def right_at(scale: float) -> bool:
        deltas = {name: LowRankDelta(scale * delta.B, delta.A) for name, delta in whole.items()}
        return all(fresh(view, text, deltas)[1] for text in texts[:2])

    tried = SCALES[: SCALES.index(less.scale) + 2]
    assert [right_at(scale) for scale in tried] == [scale >= less.scale for scale in tried]


def test_shrinking_is_held_up_by_those_that_were_right_alone(view: EditableModel, texts: list[Text]) -> None:
    """The wrong one cannot hold the others up, and is reported as it is after all."""
    trainees = [*of(texts[:1]), Trainee(texts[2], judged=True, weight=1e-6)]
    steps = {"max_steps": 40, "learning_rate": 0.04}
    full, _ = learned(view, trainees, shrink=False, **steps)
    less, deltas = learned(view, trainees, **steps)
    assert full.right == less.right == [True, False] and less.scale < 1
    for text, loss, right in zip([texts[0], texts[2]], less.losses, less.right, strict=True):
        assert fresh(view, text, deltas) == (pytest.approx(loss, abs=1e-4), right)


def test_an_update_shrinks_while_all_stays_right_beside_each_decoy(view: EditableModel, texts: list[Text]) -> None:
    """The decoy takes most of the update back, which at full size it bears."""
    _, whole = learned(view, of(texts[:1]), shrink=False)

    def scaled(by: float) -> dict[str, LowRankDelta]:
        return {name: LowRankDelta(by * delta.B, delta.A) for name, delta in whole.items()}

    def found(*decoys: dict[str, LowRankDelta]) -> float:
        factors = KeyBasisFactors(*({n: getattr(d, side) for n, d in whole.items()} for side in ("A", "B")))
        course = Course(view, FIRST, of(texts[:1]), Teacher(view, [], FIRST), TrainingConfig(**QUICK), 0, decoys)
        state = State(course.judged, course.weights)
        assert confirmed(course, factors, state)
        return shrunk(course, factors, state)

    assert found() == SCALES[-1] and fresh(view, texts[0], scaled(0.5))[1]
    beside = found({}, scaled(-0.6))
    assert beside > SCALES[-1]
    assert fresh(view, texts[0], scaled(beside - 0.6))[1]


def test_shrinking_leaves_room_for_the_rounding_of_other_dtypes(view: EditableModel, texts: list[Text]) -> None:
    """An answer that was right by more than bfloat16 rounds stays so; one that was not has to be right alone."""
    steps = {"max_steps": 40, "learning_rate": 0.04, "stop_loss": 0.0}
    _, whole = learned(view, of(texts[:1]), shrink=False, **steps)

    def scaled(by: float) -> dict[str, LowRankDelta]:
        return {name: LowRankDelta(by * delta.B, delta.A) for name, delta in whole.items()}

    def margin_at(scale: float) -> float:
        return float(answers(view, FIRST, texts[:1], scaled(scale))[1])

    def found(beginning: float) -> float:
        start = scaled(beginning)
        factors = KeyBasisFactors(*({n: getattr(d, side) for n, d in start.items()} for side in ("A", "B")))
        config = TrainingConfig(**QUICK | {"stop_loss": 100.0})
        course = Course(view, FIRST, of(texts[:1]), Teacher(view, [], FIRST), config, 0, ())
        state = State(course.judged, course.weights)
        assert confirmed(course, factors, state)
        return shrunk(course, factors, state)

    grid = [round(0.01 * step, 2) for step in range(1, 101)]
    clear = next(scale for scale in grid if margin_at(scale) >= MARGIN)  # grows with the scale
    thin = next(scale for scale in grid if margin_at(scale) > 0)
    assert thin < clear < 1 and margin_at(0.9 * clear) < MARGIN
    begun = round(1.08 * clear, 4)
    assert margin_at(found(begun) * begun) >= MARGIN
    under = round(0.99 * clear, 4)
    assert 0 < margin_at(found(under) * under) < margin_at(under) < MARGIN


def test_nothing_shrinks_until_an_answer_is_unsure(view: EditableModel, texts: list[Text]) -> None:
    """The scale ends where a loss would pass its limit: here between those at 0.85 and at 0.8."""
    steps = {"max_steps": 40, "learning_rate": 0.04}  # all of them: neither run gets below its stopping loss
    full, whole = learned(view, of(texts[:1]), stop_loss=0.0, shrink=False, **steps)

    def loss_at(scale: float) -> float:
        deltas = {name: LowRankDelta(scale * delta.B, delta.A) for name, delta in whole.items()}
        return fresh(view, texts[0], deltas)[0]

    assert loss_at(0.8) > loss_at(0.85) > loss_at(1.0)
    limit = (loss_at(0.85) + loss_at(0.8)) / 2
    trained, deltas = learned(view, of(texts[:1]), stop_loss=limit / UNSURE_LOSS, **steps)
    assert trained.right == full.right == [True] and trained.scale == 0.85
    assert trained.losses == [pytest.approx(fresh(view, texts[0], deltas)[0], abs=1e-4)]


def test_nothing_shrinks_where_nothing_is_right(view: EditableModel, texts: list[Text]) -> None:
    trained, _ = learned(view, of(texts[:2]), max_steps=1)
    assert trained.right == [False, False] and trained.scale == 1.0


# ---- what can go wrong -----------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite(view: EditableModel, texts: list[Text]) -> None:
    with pytest.raises(ComputationError, match=r"The loss of step \d is not finite"):
        learned(view, of(texts[:1]), learning_rate=1e37)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=20))
def test_texts_are_run_with_others_about_as_long(lengths: list[int]) -> None:
    groups = alike_in_length(lengths)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert min(lengths[i] for i in group) >= SHORTEST * max(lengths[i] for i in group)
    longest = [max(lengths[i] for i in group) for group in groups]
    assert all(later < SHORTEST * earlier for earlier, later in pairwise(longest))  # no more groups than need be
