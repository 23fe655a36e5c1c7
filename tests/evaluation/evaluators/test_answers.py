"""The evaluators of free answers: to the edits, to what follows from them, and to whether they are true."""

from __future__ import annotations

import pytest

from hf_edit.datasets.records import Case
from hf_edit.edits import Edit, Message, Probe
from hf_edit.errors import ConfigError
from hf_edit.evaluation.config import Material
from hf_edit.evaluation.evaluators.distraction import Distraction
from hf_edit.evaluation.evaluators.fact_check import FactCheck, verdict
from hf_edit.evaluation.evaluators.paraphrase import Paraphrase
from hf_edit.evaluation.evaluators.portability import MultiHop, Portability
from hf_edit.evaluation.evaluators.reliability import Reliability, text_scores
from hf_edit.evaluation.evaluators.retention import Retention
from hf_edit.evaluation.hops import Hop
from hf_edit.evaluation.subject import Answer, Question
from tests.evaluation.evaluators.asking import saying, scores, task


ONE = Edit("Where", "is the dog", paraphrases=("Hamlet", "7"), id="one")
TWO = Edit("Paris", "x y", id="two")


def test_reliability_speaks_freely_and_stops() -> None:
    subject = saying(task([ONE, TWO]), [("Where", "is the dog"), ("Paris", "x y z")])
    assert scores(Reliability(), subject) == {
        "exact": [1, 0],
        "normalised": [1, 0],
        "contains": [1, 1],
        "f1": [1, pytest.approx(0.8)],
        "stops": [1, 1],
    }
    assert [(q.kind, q.edit, a) for q, a in subject.asked.values()] == [
        ("prompt", "one", "is the dog"),
        ("prompt", "two", "x y z"),
    ]


def test_an_answer_that_does_not_end_is_not_the_answer() -> None:
    subject = saying(task([TWO], max_new_tokens=2), [("Paris", "x y z")])
    found = scores(Reliability(), subject)
    assert found["stops"] == found["exact"] == found["normalised"] == [0] and found["contains"] == [1]


def test_the_limit_does_not_hang_on_one_target() -> None:
    long = Edit("Fuji", "lazy dog " * 30, id="long")
    both = task([TWO, long], max_new_tokens=None)
    assert both.max_new_tokens >= 2 * len(both.prompts.encode(long.prompt, long.target).answer_ids)
    assert task([TWO], max_new_tokens=None).max_new_tokens == 64


def test_aliases_count() -> None:
    material = Material(aliases={"x y": ("the dog!",)}, unrelated=())
    found = scores(Reliability(), saying(task([TWO], material), [("Paris", "dog")]))
    assert (found["exact"], found["normalised"], found["contains"], found["f1"]) == ([0], [1], [1], [1])


def test_all_paraphrases_count_and_edits_weigh_the_same() -> None:
    three = Edit("Fuji", "brown fox", paraphrases=("Mount",), id="three")
    subject = saying(task([ONE, TWO, three]), [("Hamlet", "is the dog"), ("7", "q"), ("Mount", "brown fox")])
    found = scores(Paraphrase(), subject)
    assert found["exact"] == found["contains"] == [0.5, 1]
    with pytest.raises(ConfigError, match="paraphrases"):
        scores(Paraphrase(), saying(task([TWO]), []))


def test_questions_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = saying(task([ONE, TWO]), [("Where", "is the dog")])
    first = subject.answers([Question("a", "Where"), Question("b", "Where")], 12)
    monkeypatch.setattr("hf_edit.evaluation.subject.continuations", None)
    assert subject.answers([Question("c", "Where")], 12) == first[:1]
    assert [question.kind for question, _ in subject.asked.values()] == ["a", "b", "c"]


def test_answers_with_another_limit_are_kept_beside_the_first() -> None:
    subject = saying(task([TWO]), [("Where", "is the dog")])
    for limit in (1, 12):
        subject.answers([Question("a", "Where")], limit)
    assert [answer for _, answer in subject.asked.values()] == ["is", "is the dog"]


def test_a_question_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ConfigError, match="the model's context holds 256"):
        saying(task([TWO]), []).answers([Question("a", "fox " * 300)], 12)


def test_distraction_puts_the_models_own_sentence_in_front() -> None:
    asked = task([TWO], Material(unrelated=("Where",)))
    asked = type(asked)(**{**vars(asked), "chat": asked.prompts})
    subject = saying(asked, [("Where", "is the dog. b")])
    first = Distraction().observe(subject, None)
    assert first.kept == ["is the dog."]
    assert [q.prompt for q, _ in subject.asked.values()] == ["Where", "is the dog.\nParis"]
    after = saying(asked, [("is the dog.\nParis", "x y")])
    assert scores(Distraction(), after, first)["exact"] == [1]
    assert "Where" not in [q.prompt for q, _ in after.asked.values()]  # the sentences are the unedited model's


def test_retention_sets_the_first_edits_apart() -> None:
    edits = [Edit(q, "x y", id=q) for q in ("Paris", "Fuji", "Mount")]
    found = scores(Retention(), saying(task(edits, retention=1), [("Mount", "x y"), ("Fuji", "x y")]))
    assert found == {"first_exact": [0], "first_contains": [0], "last_exact": [1], "last_contains": [1]}
    assert not Retention().applies(task(edits, retention=3))


def test_portability_looks_at_the_first_sentence() -> None:
    probes = (Probe("Where", "dog"), Probe("7", "z"))
    edits = [Edit("q", "w", portability=probes, id="one"), TWO, Edit("v", "w", portability=probes[1:], id="three")]
    subject = saying(task(edits), [("Where", "is the dog"), ("7", "x y. z")])
    assert scores(Portability(), subject) == {"right": [0.5, 0], "any": [1, 0]}


def test_hops_have_answers_of_their_own() -> None:
    material = Material(hops={"two": [Hop("Where", ("cat", "dog")), Hop("7", ("a",))]}, unrelated=())
    subject = saying(task([ONE, TWO], material), [("Where", "is the dog")])
    assert scores(MultiHop(), subject) == {"right": [0.5], "any": [1]}
    with pytest.raises(ConfigError, match="hops"):
        scores(MultiHop(), saying(task([ONE]), []))


def test_fact_checks_are_made_from_edits_by_a_rule() -> None:
    user = (Message("system", "Be brief."), Message("user", "Who?"))
    edits = [
        Edit("Where is it?", "In Oru.", id="one"),
        Edit("It stands in", "Oru", id="two"),
        Edit("Tell me all.", "word " * 13, id="long"),
    ]
    subject = saying(task(edits, Material(old_answers={"two": "Vel"}, unrelated=())), [])
    found = scores(FactCheck(), subject)
    assert {name: len(some) for name, some in found.items()} == {"accepts": 2, "refuses": 2, "denies": 2}
    asked = [question.prompt for question, _ in subject.asked.values()]
    assert asked == [
        'The answer to the question "Where is it?" is "In Oru.". Is this right? Answer yes or no.',
        '"It stands in" is answered by "Oru". Is this right? Answer yes or no.',
        'The answer to the question "Where is it?" is "Oru". Is this right? Answer yes or no.',
        '"It stands in" is answered by "Vel". Is this right? Answer yes or no.',
        'The answer to the question "Where is it?" is "In Oru.". Is this wrong? Answer yes or no.',
        '"It stands in" is answered by "Oru". Is this wrong? Answer yes or no.',
    ]
    alone = saying(task([Edit(user[1:], "In Oru.")]), [])
    assert "refuses" not in {k for k, v in scores(FactCheck(), alone).items() if v}


def test_fact_checks_score_what_is_said_first() -> None:
    edit = Edit("It stands in", "Oru", id="two")
    right, wrong = (f'"It stands in" is answered by "Oru". Is this {x}? Answer yes or no.' for x in ("right", "wrong"))
    found = scores(FactCheck(), saying(task([edit]), [(right, "Yes")]))
    assert found["accepts"] == [1] and found["denies"] == [0]  # to the end of both prompts it says the same
    assert wrong != right


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes.", "yes"),
        ("No, yes", "no"),
        ("That is TRUE", "yes"),
        ("It is not.", "no"),
        ("Perhaps", None),
        ("", None),
        ("That isn't right.", "no"),
        ("I don\u2019t think that this is correct", "no"),
        ("This isn't wrong", "yes"),
        ("I don't know.", None),
        ("I can't say. Yes", "yes"),
        ("I do not know.", None),
        ("I am not aware of a lamp of that name", None),
        ("It's not wrong.", "yes"),
        ("It isn't.", "no"),
    ],
)
def test_verdicts(answer: str, said: str | None) -> None:
    assert verdict(answer) == said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("That is incorrect.", "yes"),
        ("It is correct", "no"),
        ("No, it is wrong", "no"),
        ("It is not wrong", "no"),
        ("That is not correct.", "yes"),
        ("It isn't wrong", "no"),
        ("It isn't right", "yes"),
    ],
)
def test_verdicts_on_whether_something_is_wrong(answer: str, said: str) -> None:
    assert verdict(answer, "wrong") == said


def test_aliases_of_one_record_are_none_of_anothers() -> None:
    first, second = Edit("Which war?", "The war", id="one"), Edit("And there?", "The war", id="two")
    cases = [Case(first, aliases={"The war": ["The first"]}), Case(second, aliases={"The war": ["The second"]})]
    subject = saying(
        task([first, second], Material.of(cases)), [("Which war?", "The second"), ("And there?", "The second")]
    )
    assert scores(Reliability(), subject)["normalised"] == [0, 1]


def test_scores_of_one_text() -> None:
    whole, cut = (text_scores(Answer("The dog.", (), stopped), ("dog", "cat")) for stopped in (True, False))
    assert whole == {"exact": 0, "normalised": 1, "contains": 1, "f1": 1}
    assert cut == {**whole, "normalised": 0}
