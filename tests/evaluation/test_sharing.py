"""Processes that evaluate together come to the figures of one, and each asks its share."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from transformers import PreTrainedModel

import hf_edit
from hf_edit import EditSet, EvaluateConfig, Evaluation, Material
from hf_edit.edits import Edit, Probe
from hf_edit.errors import ComputationError, ConfigError
from hf_edit.evaluation.evaluators import EVALUATORS
from hf_edit.evaluation.evaluators.general import General
from hf_edit.evaluation.recall import Recall
from hf_edit.evaluation.subject import Answer, Question, Subject
from hf_edit.models.editable import EditableModel
from hf_edit.models.fingerprint import running_fingerprint
from hf_edit.processes import Processes, is_first
from tests.evaluation.evaluators.asking import task
from tests.launching import launched
from tests.packs.make import make_pack
from tests.tiny import tiny_model, tiny_tokenizer


T = TypeVar("T")
R = TypeVar("R")

LONG = "The fox lives there. It is quick and brown and jumps over the lazy dog " + "and the play " * 5
EDITS = EditSet(
    [
        Edit(
            f"Who wrote the play {name}?",
            target,
            paraphrases=(f"The play {name} was written by", f"{name} is whose play?"),
            locality=(Probe(f"Where is {name}?", "There."), Probe(f"What is {name} about?")),
            portability=(Probe(f"Is {name} a play?", "Yes."),),
            id=name,
        )
        for name, target in (("Hamlet", "Tarvello."), ("Fuji", LONG), ("Oru", "A fox did."), ("Brell", "The dog."))
    ]
)
MATERIAL = Material(
    old_answers={edit.id: "Nobody." for edit in EDITS},
    unrelated=("What do bees make?", "Name three planets.", "What is the capital?"),
    text="The quick brown fox jumps over the lazy dog. " * 120,
)
CONFIG = EvaluateConfig(
    evaluators=tuple(name for name in EVALUATORS if name not in (General.name, "multi_hop")),
    max_new_tokens=6,
    probe_tokens=6,
    drift_tokens=6,
    drift_questions=3,
    retention=1,
    batch=4,
)


class Counting:
    """How many tokens a model was given before and after the edit, and which stages were told."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.tokens, self.stages = model, [0, 0], list[str]()
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: object, args: Sequence[torch.Tensor], given: dict[str, torch.Tensor]) -> None:
        ids = given["input_ids"] if "input_ids" in given else args[0]
        edited = any("lora" in name for name, _ in self.model.named_modules())
        self.tokens[edited] += ids.numel()

    def stage(self, name: str, total: int) -> None:
        del total
        self.stages.append(name)

    def step(self, advance: int = 1, **info: float | str) -> None: ...


def evaluated(out: Path) -> None:
    """Three evaluations, of which the second and the third remember the base, the third in some of the processes."""
    model = tiny_model()
    pack, counting = make_pack(model, edits=EDITS), Counting(model)
    recall = Recall(running_fingerprint(model), out / "base")
    rank, found = os.environ.get("RANK", "0"), []
    for remembered in (None, recall, recall if not is_first() else None):
        counting.tokens, counting.stages = [0, 0], []
        evaluation = hf_edit.evaluate(
            model, tiny_tokenizer(), pack, config=CONFIG, material=MATERIAL, recall=remembered, progress=counting
        )
        found.append((evaluation, counting.tokens, counting.stages))
    (out / f"{rank}.pickle").write_bytes(pickle.dumps(found))


Found = list[tuple[Evaluation, list[int], list[str]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found, Found]:
    """What one process finds, and each of two."""
    one, two = (tmp_path_factory.mktemp(f"by-{count}") for count in (1, 2))
    launched(evaluated, two)
    evaluated(one)
    alone, first, second = (pickle.loads(path.read_bytes()) for path in (one / "0.pickle", *sorted(two.glob("*.p*"))))
    return alone, first, second


def check_alike(found: Evaluation, expected: Evaluation) -> None:
    assert found.generations == expected.generations != ()
    assert found.protocol == expected.protocol and found.environment == expected.environment
    assert found.pack == expected.pack
    assert [metric.name for metric in found.metrics] == [metric.name for metric in expected.metrics]
    for metric, other in zip(found.metrics, expected.metrics, strict=True):
        for ours, theirs in ((metric.before, other.before), (metric.after, other.after)):
            assert (ours is None) is (theirs is None)
            if ours is not None and theirs is not None:
                assert ours.n == theirs.n
                numbers, others = ([x or 0.0 for x in (one.value, one.low, one.high)] for one in (ours, theirs))
                assert numbers == pytest.approx(others, rel=1e-6, abs=1e-6), metric.name


def test_two_processes_come_to_the_evaluation_of_one(runs: tuple[Found, Found, Found]) -> None:
    alone, first, second = runs
    for (expected, _, _), (found, _, _), (other, _, _) in zip(alone, first, second, strict=True):
        assert found == other  # seconds too
        check_alike(found, expected)
    assert {metric.name.partition(".")[0] for metric in alone[0][0].metrics} == set(CONFIG.evaluators or ())


def test_each_process_asks_its_share_and_the_first_tells(runs: tuple[Found, Found, Found]) -> None:
    (_, alone, stages), (_, first, told), (_, second, silent) = (found[1] for found in runs)
    for look in (0, 1):
        assert max(first[look], second[look]) < 0.6 * alone[look]
    assert told == stages == ["before", "after"] and silent == []


def test_what_one_process_remembers_the_others_may_ask(runs: tuple[Found, Found, Found]) -> None:
    (asked, again), (shared, spared) = ([tokens for _, tokens, _ in found[1:]] for found in runs[1:])
    assert again == asked and spared[1] == shared[1]
    assert spared[0] < 0.01 * shared[0]  # to see what the model allows


class Played(Processes):
    """This one of several, doing the work of the others too: batches are cut as for all of them."""

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        return items

    def map(self, compute: Callable[[T], R], items: Sequence[T]) -> list[R]:
        return [compute(item) for item in items]


def among(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "joined", lambda device: Played(0, count))


def test_answers_are_cut_off_where_one_process_cuts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    view, asked = EditableModel.of(tiny_model()), task(EDITS, batch=4)
    texts = ["dog " * 240, "Where is the dog?", "Who wrote Hamlet?", "Mount Fuji", "The lazy fox", "quick"]
    questions = [Question("any", text) for text in texts]

    def said() -> list[Answer]:
        return Subject(view, asked).answers(questions, 20)

    alone = said()
    cut_off = {len(answer.ids) for answer in alone if not answer.stopped}
    assert len(cut_off) == 2 and max(cut_off) == 20  # sooner in the batch of the long question
    for count in (2, 3, 9):
        among(count, monkeypatch)
        assert said() == alone
    with pytest.raises(ConfigError, match="context holds"):
        Subject(view, asked).answers([Question("any", "dog " * 300)], 20)


def test_what_is_shared_is_joined_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(EditableModel.of(tiny_model()), task(EDITS))
    runs: list[Sequence[int]] = []

    def ask(some: Sequence[int]) -> list[int]:
        runs.append(some)
        return [10 * item for item in some]

    assert subject.shared("x", range(5), ask) == [0, 10, 20, 30, 40] and runs == [(0, 1, 2, 3, 4)]
    runs.clear()
    among(2, monkeypatch)
    subject = Subject(subject.view, subject.task)
    assert subject.shared("x", range(5), ask) == [0, 10, 20, 30, 40] and [len(run) for run in runs] == [3, 2]
    assert subject.shared("x", (), ask) == [] and subject.shared("x", [7], ask) == [70]
    assert subject.answers([], 5) == []


def fails_in_one(out: Path) -> None:
    """An evaluation in which one process's share cannot be asked."""

    def broken(*_: object) -> None:
        raise ComputationError("Broken.", "Mend it.")

    with pytest.MonkeyPatch.context() as patch:
        if not is_first():
            patch.setattr(Subject, "_continued", broken)
        with pytest.raises(ComputationError, match="Broken"):
            hf_edit.evaluate(tiny_model(), tiny_tokenizer(), edits=EDITS, config=replace(CONFIG, evaluators=None))
    (out / os.environ["RANK"]).touch()


def test_what_fails_in_one_process_fails_in_all(tmp_path: Path) -> None:
    launched(fails_in_one, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}
