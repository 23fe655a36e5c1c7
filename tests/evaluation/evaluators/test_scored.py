"""The evaluators that score given answers, and those of long ones."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from hf_edit.edits import Edit, Probe
from hf_edit.errors import ConfigError
from hf_edit.evaluation.compat import character_bleu, rouge_l_recall
from hf_edit.evaluation.config import Material
from hf_edit.evaluation.drift import perplexity
from hf_edit.evaluation.edit_scores import edit_scores
from hf_edit.evaluation.evaluators.anyedit_compat import AnyEditCompat
from hf_edit.evaluation.evaluators.emsedit_compat import EMSEditCompat
from hf_edit.evaluation.evaluators.general import General
from hf_edit.evaluation.evaluators.long_form import LongForm
from hf_edit.evaluation.evaluators.perplexity import Perplexity
from hf_edit.evaluation.evaluators.success import Success
from hf_edit.evaluation.evaluators.teacher_forced import TeacherForced
from hf_edit.evaluation.following import followed
from hf_edit.evaluation.intervals import estimate
from hf_edit.evaluation.scores import bleu, rouge_l
from hf_edit.evaluation.subject import Subject
from hf_edit.models.editable import EditableModel
from hf_edit.packs.evaluation import FIXED, FREE, Figure
from hf_edit.prompting import PromptFormat
from tests.evaluation.evaluators.asking import PLAIN, observed, saying, scores, task
from tests.tiny import tiny_model, tiny_tokenizer


EDITS = [
    Edit("Where", "is the dog", paraphrases=("Hamlet", "7"), locality=(Probe("Mount", "b c"), Probe("q")), id="one"),
    Edit("Paris", "x y", paraphrases=("Fuji",), locality=(Probe("lazy", "fox"),), id="two"),
    Edit("quick", "brown", id="three"),
]
OLD = {"one": "wrote", "two": "x z", "three": "jumps over it"}


def tiny(asked: Any) -> Subject:
    return Subject(EditableModel.of(tiny_model()), asked)


def test_success_and_teacher_forcing_are_those_of_the_edit_scores() -> None:
    asked = task(EDITS, Material(old_answers=OLD, unrelated=()))
    expected = edit_scores(tiny_model(), PLAIN, EDITS, [OLD[edit.id] for edit in EDITS])
    found = scores(Success(), tiny(asked))
    assert found["efficacy"] == [one.new_likelier for one in expected]
    assert found["paraphrase"] == [one.new_likelier_paraphrase for one in expected[:2]]
    assert found["neighbourhood"] == [one.neighbour_kept for one in expected[:2]]
    assert found["score"] == [
        [one.new_likelier, one.new_likelier_paraphrase, one.neighbour_kept] for one in expected[:2]
    ]
    forced = scores(TeacherForced(), tiny(asked))
    assert forced == {
        "es": [one.es for one in expected],
        "gs": [one.gs for one in expected[:2]],
        "ls": [one.ls for one in expected[:2]],
    }


def test_the_score_of_success_is_a_harmonic_mean() -> None:
    rows = [[1.0, 0.5, 1.0], [1.0, 0.0, 0.5]]
    about = Success.metrics["score"]
    assert estimate(rows, about.statistic) == pytest.approx(3 / (1 / 1.0 + 1 / 0.25 + 1 / 0.75))


def test_success_needs_every_old_answer() -> None:
    with pytest.raises(ConfigError, match="old_answers"):
        Success().check(task(EDITS, Material(old_answers={"one": "wrote"})))


def test_teacher_forced_share_is_scikit_learns_accuracy() -> None:
    accuracy_score = pytest.importorskip("sklearn.metrics").accuracy_score
    for edit, found in zip(EDITS, scores(TeacherForced(), tiny(task(EDITS)))["es"], strict=True):
        text = PLAIN.encode(edit.prompt, edit.target)
        with torch.no_grad():
            said = tiny_model()(torch.tensor([text.ids])).logits[0].argmax(-1)
        answer = list(text.answer_ids[:-1])
        start = text.answer_start - 1
        assert found == pytest.approx(accuracy_score(answer, said[start : start + len(answer)].tolist()))


def test_sequence_log_probability_is_lm_evals() -> None:
    models = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    harness = models.HFLM(pretrained=tiny_model(), tokenizer=tiny_tokenizer(), batch_size=2)
    asked = [(edit.prompt, edit.target) for edit in EDITS]
    requests = [
        instance(request_type="loglikelihood", doc={}, arguments=(q, f" {a}"), idx=i) for i, (q, a) in enumerate(asked)
    ]
    expected = [value for value, _ in harness.loglikelihood(requests)]
    found = [one.log_probability for one in followed(tiny_model(), PLAIN, asked)]
    assert found == pytest.approx(expected, rel=1e-4)


def compat_by_loop(question: str, new: str, old: str, width: int) -> float:
    """One edit as published code scores it: logits along the new answer, the old one padded with token 0."""
    text, other = PLAIN.encode(question, new), PLAIN.encode(question, old)
    with torch.no_grad():
        logits = tiny_model()(torch.tensor([text.ids])).logits[0]
    news, olds = text.answer_ids[:-1], [*other.answer_ids[:-1], *[0] * 50]
    won = [
        bool(logits[text.answer_start - 1 + t, news[t]] > logits[text.answer_start - 1 + t, olds[t]])
        for t in range(min(width, len(news)))
    ]
    return sum(won) / len(won)


def test_emsedit_compat_compares_tokens_at_prefixes_of_the_new_answer() -> None:
    asked = task(EDITS, Material(old_answers=OLD, unrelated=(), layout="counterfact"))
    found = scores(EMSEditCompat(), tiny(asked))
    width = max(len(PLAIN.encode(edit.prompt, OLD[edit.id]).answer_ids) - 1 for edit in EDITS)
    assert found["es"] == [compat_by_loop(str(e.prompt), e.target, OLD[e.id], width) for e in EDITS]
    width = max(len(PLAIN.encode(str(e.paraphrases[0]), OLD[e.id]).answer_ids) - 1 for e in EDITS[:2])
    assert (
        found["gs"]
        == [  # of all paraphrases
            fmean(compat_by_loop(str(one), e.target, OLD[e.id], width) for one in e.paraphrases) for e in EDITS[:2]
        ]
    )
    width = max(len(PLAIN.encode(str(e.locality[0].prompt), e.target).answer_ids) - 1 for e in EDITS[:2])
    assert found["ls"] == [
        compat_by_loop(str(e.locality[0].prompt), str(e.locality[0].answer), e.target, width) for e in EDITS[:2]
    ]


def test_old_answers_of_other_data_are_not_compared() -> None:
    known = task(EDITS, Material(old_answers=OLD, unrelated=(), layout="ripple"))
    assert scores(EMSEditCompat(), tiny(known)) == scores(EMSEditCompat(), tiny(task(EDITS)))


def test_without_old_answers_emsedit_compat_is_the_share_of_likeliest_tokens() -> None:
    found = scores(EMSEditCompat(), tiny(task(EDITS)))
    expected = edit_scores(tiny_model(), PLAIN, EDITS)
    assert found["es"] == [pytest.approx(one.es) for one in expected]
    first = followed(tiny_model(), PLAIN, [("Hamlet", "is the dog"), ("Fuji", "x y")])
    assert found["gs"] == [pytest.approx(one.accuracy) for one in first]


LONG = "is the dog " + " ".join(f"w{i}" for i in range(20))
ABOUT = Edit("Where", LONG, paraphrases=("Hamlet", "7"), portability=(Probe("Mount", "c"), Probe("q", "z")), id="long")


def test_long_answers_are_compared_whole_and_edits_with_short_ones_left_out() -> None:
    asked = task([ABOUT, EDITS[1]], max_new_tokens=100)
    subject = saying(asked, [("Where", "is the dog jumps"), ("Hamlet", "is the dog jumps"), ("Mount", "b c")])
    found = scores(LongForm(), subject)
    said = "is the dog jumps"
    assert found["bleu"] == [bleu(said, LONG)] and found["rouge_l"] == [rouge_l(said, LONG)]
    target = PLAIN.encode("Where", LONG).answer_ids[:-1]
    assert found["prefix_tokens"][0] >= 3 and found["prefix"] == [found["prefix_tokens"][0] / len(target)]
    other = subject.answers(asked.reworded(ABOUT), asked.max_new_tokens)[1].text
    assert found["rouge_l_paraphrase"] == [pytest.approx((rouge_l(said, LONG) + rouge_l(other, LONG)) / 2)]
    assert found["sub_questions"] == [0.5]
    assert not LongForm().applies(task(EDITS))


def test_bertscore_needs_an_encoder_that_is_here(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="could not be loaded"):
        LongForm().check(task([ABOUT], bertscore_model=str(tmp_path)))
    with pytest.raises(ConfigError, match="could not be loaded"):
        AnyEditCompat().check(task([ABOUT], sentence_model=str(tmp_path)))


def test_anyedit_compat_takes_the_first_paraphrase_and_recall() -> None:
    asked = task([ABOUT], max_new_tokens=100)
    said = "is the dog jumps"
    found = scores(AnyEditCompat(), saying(asked, [("Where", said), ("Hamlet", said), ("Mount", "b c")]))
    assert found["bleu"] == found["bleu_paraphrase"] == [character_bleu(said, LONG)]
    assert found["rouge_l"] == found["rouge_l_paraphrase"] == [rouge_l_recall(said, LONG)]
    assert found["rouge_l_sub"][0] >= 0.5


def test_perplexity_is_of_the_text_that_is_given() -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 60
    asked = task(EDITS, Material(text=text, unrelated=()), perplexity_tokens=600)
    found = scores(Perplexity(), tiny(asked))["text"]
    ids = PLAIN.text_ids(text)[:600]
    assert len(found) == 2  # stretches of the model's whole context of 256
    expected = perplexity(tiny_model(), ids, 256)
    assert estimate(found, Perplexity.metrics["text"].statistic) == pytest.approx(expected)
    with pytest.raises(ConfigError, match="has 1 tokens"):
        observed(Perplexity(), tiny(task(EDITS, Material(text="a", unrelated=()))))


class Harness(ModuleType):
    """What of lm-eval is called."""

    __version__ = "0"

    def __init__(self, result: dict[str, Any] | Exception) -> None:
        super().__init__("lm_eval")
        self.result, self.asked = result, {}

    def simple_evaluate(self, **asked: Any) -> dict[str, Any]:
        self.asked = asked
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


RESULT = {
    "results": {
        "some-task": {
            "alias": "x",
            "acc,none": 0.5,
            "acc_stderr,none": 0.1,
            "ppl,strict": 7.0,
            "ppl_stderr,strict": "N/A",
        }
    },
    "n-samples": {"some-task": {"original": 9, "effective": 4}},
    "higher_is_better": {"some-task": {"acc": True, "ppl": False}},
    "configs": {"some-task": {"output_type": "multiple_choice"}},
}


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Harness:
    """In place of lm-eval."""
    harness = Harness(RESULT)
    monkeypatch.setitem(sys.modules, "lm_eval", harness)
    monkeypatch.setitem(sys.modules, "lm_eval.models", ModuleType("lm_eval.models"))
    huggingface = SimpleNamespace(HFLM=lambda **given: given)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", huggingface)  # type: ignore[arg-type]
    return harness


def test_general_ability_is_what_lm_eval_says(harness: Harness) -> None:
    subject = tiny(task(EDITS, tasks=("some-task",), task_limit=4))
    found = observed(General(), subject)
    accuracy = found.scores["some_task.acc"]
    assert isinstance(accuracy, Figure) and (accuracy.value, accuracy.n) == (0.5, 4)
    assert (accuracy.low, accuracy.high) == pytest.approx((0.304, 0.696), abs=1e-3)
    assert found.scores["some_task.ppl.strict"] == Figure(7.0, None, None, 4)
    assert not found.about["some_task.ppl.strict"].higher_is_better
    assert harness.asked["limit"] == 4 and harness.asked["model"]["pretrained"] is subject.model
    harness.result = KeyError("some-task")
    with pytest.raises(ConfigError, match="could not run some-task"):
        observed(General(), subject)


def test_a_group_has_the_records_of_its_tasks(harness: Harness) -> None:
    harness.result = {
        "results": {
            "all": {"alias": "all", "acc,none": 0.5, "acc_stderr,none": 0.1},
            "some": {"alias": " - some", " ": " "},
            "one": {"alias": "  - one", "acc,none": 0.25},
            "two": {"alias": " - two", "acc,none": 0.75},
        },
        "group_subtasks": {"all": ["some", "two"], "some": ["one"]},
        "n-samples": {name: {"original": 9, "effective": n} for name, n in (("one", 4), ("two", 5))},
        "higher_is_better": {},
        "configs": {"one": {"output_type": "multiple_choice"}, "two": {"output_type": "generate_until"}},
    }
    found = observed(General(), tiny(task(EDITS, tasks=("all",))))
    counts = {name: figure.n for name, figure in found.scores.items() if isinstance(figure, Figure)}
    assert counts == {"all.acc": 9, "one.acc": 4, "two.acc": 5}
    assert {name: about.protocol for name, about in found.about.items()} == {
        "all.acc": FREE,
        "one.acc": FIXED,
        "two.acc": FREE,
    }


def test_general_ability_without_lm_eval_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match="hf-edit\\[lm-eval\\]"):
        General().check(task(EDITS, tasks=("some-task",)))


def test_chat_is_the_format_of_questions_without_edits() -> None:
    assert task(EDITS).chat == PromptFormat.of("chat", PLAIN.tokenizer)
