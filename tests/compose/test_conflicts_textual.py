"""Conflicts that texts tell: the planted pairs, the measure, the search for pairs, and who gives way."""

from __future__ import annotations

import json
import time
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_edit.compose.conflicts import Finding, resolve, textual_conflicts
from hf_edit.compose.conflicts.questions import LIKE, Question, same_answer
from hf_edit.edits import Edit, EditSet, Message, prompt_key
from hf_edit.errors import ComposeError


PLANTED = [
    json.loads(line) for line in (Path(__file__).parent / "conflict_pairs.jsonl").read_text("utf-8").splitlines()
]
CONFLICTING = ("same", "paraphrase", "fact")


def pair(planted: dict) -> tuple[Edit, Edit]:
    return Edit.from_json(planted["a"]), Edit.from_json(planted["b"])


def found_in(*edits: Edit) -> list[Finding]:
    return textual_conflicts([EditSet([edit]) for edit in edits])


def likeness(first: str, second: str) -> float:
    return Question.of(first).likeness(Question.of(second))


def test_precision_and_recall_on_the_planted_pairs() -> None:
    verdicts = [(p["kind"] in CONFLICTING, any(f.conflict for f in found_in(*pair(p)))) for p in PLANTED]
    right = sum(wanted and found for wanted, found in verdicts)
    assert len(verdicts) >= 60
    assert right / sum(found for _, found in verdicts) >= 0.9
    assert right / sum(wanted for wanted, _ in verdicts) >= 0.9


def test_planted_duplicates_are_recognised() -> None:
    for planted in (p for p in PLANTED if p["kind"] == "duplicate"):
        assert [f.kind for f in found_in(*pair(planted))] == ["duplicate"], planted


def test_all_planted_edits_in_two_packs_at_once() -> None:
    """Each pair is found again among all others; what else is found are pairs that share a question."""
    sides: list[list[Edit]] = [[], []]
    wanted = set()
    for number, planted in enumerate(PLANTED):
        for side, edit, letter in zip(sides, pair(planted), "ab", strict=True):
            side.append(Edit.from_json({**edit.to_json(), "id": f"{letter}{number}"}))
        if any(f.conflict for f in found_in(*pair(planted))):
            wanted.add((f"a{number}", f"b{number}"))
    unique = [list({prompt_key(edit.prompt): edit for edit in side}.values()) for side in sides]
    findings = textual_conflicts([EditSet(side) for side in unique])
    ids = {(f.first.id, f.second.id) for f in findings if f.conflict}
    left = {edit.id for side in unique for edit in side}
    assert {p for p in wanted if left.issuperset(p)} <= ids


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("question", Edit("Who runs Osk?", "Ada."), Edit((Message("user", "who runs osk"),), "Bo.")),
        ("paraphrase", Edit("Who wrote Osk?", "Ada."), Edit("Who is the author of Osk?", "Bo.")),
        ("fact", Edit("Osk was written by", "Ada", "Osk"), Edit("Who is the author of Osk?", "Bo.", "Osk")),
        ("duplicate", Edit("Who wrote Osk?", "Ada."), Edit("Who is the author of Osk?", "It is Ada")),
    ],
)
def test_kinds(kind: str, first: Edit, second: Edit) -> None:
    (finding,) = found_in(first, second)
    assert finding.kind == kind and finding.conflict == (kind != "duplicate")
    assert LIKE <= finding.score <= 1
    assert (finding.first.pack, finding.first.id, finding.second.id) == (0, first.id, second.id)
    assert first.target in finding.explanation
    assert finding.to_json()["first"] == {"pack": 0, "name": "pack 1", "id": first.id}


def test_earlier_turns_of_a_chat_belong_to_the_question() -> None:
    def asked(about: str, answer: str) -> Edit:
        turns = (
            Message("user", f"Tell me of {about}."),
            Message("assistant", "Yes?"),
            Message("user", "Its capital?"),
        )
        return Edit(turns, answer)

    assert not found_in(asked("Veldora", "Osk"), asked("Tarn", "Lindholm"))
    assert found_in(asked("Veldora", "Osk"), asked("Veldora", "Lindholm"))[0].kind == "question"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What is the capital of France?", "What is the capital of Spain?"),
        ("Which birds can fly?", "Which birds can't fly?"),
        ("Who won the 1987 cup?", "Who won the 1988 cup?"),
        ("In which city is Osk?", "In which country is Osk?"),
        ("Is the shop open?", "Is the shop closed?"),
        ("What is a stable state?", "What is an unstable state?"),
        ("Who is Peter?", "Who is Peters?"),
    ],
)
def test_what_must_not_count_as_a_paraphrase(first: str, second: str) -> None:
    assert likeness(first, second) == 0


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("Port Amber.", "port amber", True),
        ("1901", "It was in 1901.", True),
        ("Mira", "Mira wrote the book.", True),
        ("40,000", "40000", True),
        ("Yes.", "No.", False),
        ("C", "C++", False),
        ("-5", "5", False),
        ("3.5", "35", False),
        ("to Rome", "from Rome", False),
        ("Ada beat Bo", "Bo beat Ada", False),
        ("It opens.", "It does not open.", False),
        ("+", "-", False),
    ],
)
def test_answers(first: str, second: str, same: bool) -> None:
    assert same_answer(first, second, "Who wrote the book?") is same
    assert same_answer(second, first, "Who wrote the book?") is same


def test_answers_that_repeat_different_words_of_the_question_differ() -> None:
    question = "Which is bigger, Osk or Tarn?"
    assert not same_answer("Osk is bigger.", "Tarn is bigger.", question)
    assert same_answer("Osk is bigger.", "Bigger is Osk", question) is False  # other words in another order


WORDS = "Osk Tarn Veldora capital king wrote author born where who first second large small not 7 8 blue river".split()
QUESTIONS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)


@example(["large"], ["large small"])  # a word and its opposite in one question, in the other the first alone
@settings(max_examples=80, deadline=None)
@given(
    st.lists(QUESTIONS, min_size=1, max_size=5, unique=True), st.lists(QUESTIONS, min_size=1, max_size=5, unique=True)
)
def test_the_search_finds_what_comparing_all_pairs_finds(first: list[str], second: list[str]) -> None:
    sets = [EditSet(Edit(q, f"answer {side}") for q in asked) for side, asked in enumerate((first, second))]
    found = {(f.first.id, f.second.id): f.score for f in textual_conflicts(sets)}
    every = {(a.id, b.id): Question.of(a.prompt).likeness(Question.of(b.prompt)) for a in sets[0] for b in sets[1]}
    assert found == {ids: score for ids, score in every.items() if score >= LIKE}
    turned = {(f.second.id, f.first.id): f.score for f in textual_conflicts(sets[::-1])}
    assert turned == found


@given(QUESTIONS, QUESTIONS)
def test_likeness_is_symmetric_and_whole_for_the_same(first: str, second: str) -> None:
    assert likeness(first, second) == likeness(second, first)
    assert likeness(first, first.upper() + " ?") == 1


def test_thousands_of_edits_take_seconds() -> None:
    def edits(side: str, count: int) -> EditSet:
        return EditSet(Edit(f"What is the capital of Land{i} in {side}?", f"{side}{i}") for i in range(count))

    shared = (
        [Edit(f"Who leads party {i}?", "Ada") for i in range(20)],
        [Edit(f"Who led party {i}?", "Bo") for i in range(20)],
    )
    sets = [EditSet([*edits(side, 2000), *extra]) for side, extra in zip(("north", "south"), shared, strict=True)]
    started = time.perf_counter()
    findings = textual_conflicts(sets)
    assert time.perf_counter() - started < 10
    assert len(findings) == 20


def sets_of(*answers: str) -> list[EditSet]:
    """Sets that answer one question each their way, and a question of their own."""
    return [
        EditSet([Edit("Who runs Osk?", answer, id=f"{answer}-runs"), Edit(f"Is {answer} tall?", "Yes.", id=answer)])
        for answer in answers
    ]


@pytest.mark.parametrize(("prefer", "kept"), [("order", 0), ("newest", 2), (1, 1), ("two", 1), ("three", 2), (0, 0)])
def test_one_answer_stays(prefer: str | int, kept: int) -> None:
    sets = sets_of("Ada", "Bo", "Cy")
    dropped = resolve(sets, prefer, ["one", "two", "three"])
    assert dropped == tuple(
        frozenset() if i == kept else frozenset({f"{name}-runs"}) for i, name in enumerate(("Ada", "Bo", "Cy"))
    )
    EditSet(edit for edits, ids in zip(sets, dropped, strict=True) for edit in edits if edit.id not in ids)


def test_who_is_chosen_by_name_does_not_depend_on_the_order() -> None:
    sets = dict(zip(("one", "two"), sets_of("Ada", "Bo"), strict=True))
    for names in permutations(sets):
        dropped = dict(zip(names, resolve([sets[n] for n in names], "two", names), strict=True))
        assert dropped == {"one": {"Ada-runs"}, "two": frozenset()}


def test_an_edit_in_conflict_with_none_but_dropped_ones_stays() -> None:
    chain = [
        EditSet([Edit("Who runs Osk?", "Ada", id="a")]),
        EditSet([Edit("Who runs Osk?", "Bo", id="b", paraphrases=("Who owns Tarn?",))]),
        EditSet([Edit("Who owns Tarn?", "Cy", id="c")]),
    ]
    assert resolve(chain, "order") == (frozenset(), {"b"}, frozenset())
    assert resolve(chain, "newest") == (frozenset(), {"b"}, frozenset())
    assert resolve(chain, 1) == ({"a"}, frozenset(), {"c"})


def test_of_the_same_edit_in_two_packs_one_stays_and_of_two_wordings_both() -> None:
    same = [EditSet([Edit("Who runs Osk?", "Ada", id=id)]) for id in "ab"]
    assert resolve(same, "order") == (frozenset(), {"b"})
    wordings = [EditSet([Edit("Who wrote Osk?", "Ada")]), EditSet([Edit("Who is the author of Osk?", "Ada")])]
    assert resolve(wordings, "order") == (frozenset(), frozenset())


@pytest.mark.parametrize(
    ("prefer", "remedy"),
    [
        ("best", "order, newest, or one of pack 1, pack 2, pack 3"),
        (3, "a place from 0 to 2"),
        (-1, "a place from 0 to 2"),
        (True, "a place from 0 to 2"),
    ],
)
def test_what_cannot_be_preferred(prefer: str | int, remedy: str) -> None:
    with pytest.raises(ComposeError, match="No pack to prefer is called") as caught:
        resolve(sets_of("Ada", "Bo", "Cy"), prefer)
    assert caught.value.remedy == f"Use {remedy}."
