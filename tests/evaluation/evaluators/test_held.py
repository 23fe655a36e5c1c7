"""What must not change: answers token for token, and divergence along the unedited model's own answers."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from hf_edit.edits import Edit, Probe
from hf_edit.evaluation.config import Material
from hf_edit.evaluation.evaluators.held import by_edit, spread
from hf_edit.evaluation.evaluators.locality import Locality
from hf_edit.evaluation.evaluators.strangers import NAMES, Strangers
from hf_edit.evaluation.evaluators.unrelated import Unrelated
from hf_edit.evaluation.subject import Question, Subject
from hf_edit.models.editable import EditableModel
from hf_edit.statistics.names import kinds
from tests.evaluation.evaluators.asking import observed, saying, scores, task
from tests.tiny import tiny_model


NEAR = Edit("Where", "is it", locality=(Probe("Mount", "b c"), Probe("7")), id="near")
BARE = Edit("Paris", "x y", id="bare")


def nudged() -> PreTrainedModel:
    model = copy.deepcopy(tiny_model())
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1.3)
    return model


def test_probes_are_compared_with_the_model_before_and_averaged_by_edit() -> None:
    asked = task([NEAR, BARE])
    before = observed(Locality(), saying(asked, [("Mount", "b c"), ("7", "wrote")]))
    assert before.scores == {}
    found = scores(Locality(), saying(asked, [("Mount", "b c"), ("7", "jumps")]), before)
    assert found["same"] == [0.5]
    assert len(found["kl"]) == len(found["agreement"]) == 1  # by edit
    assert found["kl"][0] > 0.25 and 0.5 <= found["agreement"][0] < 1  # of one probe nothing moved


def test_divergence_by_hand() -> None:
    asked = task([BARE], Material(strangers=("Who wrote it?",), unrelated=()), drift_tokens=4)
    base, edited = tiny_model(), nudged()
    before = observed(Strangers(), Subject(EditableModel.of(base), asked))
    found = scores(Strangers(), Subject(EditableModel.of(edited), asked), before)
    text = before.kept.texts[0]
    assert len(text.answer_ids) == 4
    ids = torch.tensor([text.ids[:-1]])
    with torch.no_grad():
        p, q = (m(ids).logits[0, text.answer_start - 1 :].double().log_softmax(-1) for m in (base, edited))
    assert found["kl"] == [pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)]
    assert found["agreement"] == [pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))]


def test_unrelated_questions_are_asked_in_chat_whatever_the_format_of_the_edits() -> None:
    asked = task([BARE], Material(unrelated=("Why?", "Where?")))
    assert (Unrelated().prompts(asked).name, Strangers().prompts(asked).name) == ("chat", "plain")
    model = EditableModel.of(tiny_model())
    before = observed(Unrelated(), Subject(model, asked))
    found = scores(Unrelated(), Subject(model, asked), before)
    assert found["same"] == [1, 1] and found["kl"] == pytest.approx([0, 0], abs=1e-6)
    assert before.kept.texts[0].prompt_ids == asked.chat.prompt_ids("Why?")


def test_a_context_in_front_of_the_question_is_scored_along_the_same_answer() -> None:
    asked = task([BARE], Material(strangers=("Who wrote it?",), unrelated=()))
    model = EditableModel.of(tiny_model())
    before = observed(Strangers(), Subject(model, asked))
    told = scores(Strangers(), Subject(model, asked, lambda prompt, _: f"Lazy dog. {prompt}"), before)
    assert told["kl"][0] > 1e-3


def test_strangers_are_invented_from_the_edits_and_are_none_of_them() -> None:
    edits = [Edit("Who made the amber lamp in Oru?", "x"), Edit("Where is the tall stone bridge?", "y")]
    subject = Subject(EditableModel.of(tiny_model()), task(edits, strangers=3, drift_questions=4))
    invented = [question.prompt for question in Strangers().questions(subject)]
    assert 0 < len(invented) <= 6 and len(set(invented)) == len(invented)
    assert invented == [question.prompt for question in Strangers().questions(subject)]
    assert not any("Oru" in prompt for prompt in invented)
    assert any(name in prompt for prompt in invented for some in kinds(NAMES).values() for name in some)
    given = task(edits, Material(strangers=(edits[0].prompt, "Who made the other?")))
    assert [q.prompt for q in Strangers().questions(Subject(subject.view, given))] == ["Who made the other?"]


def test_averages_and_spacing() -> None:
    questions = [Question("k", "a", "one"), Question("k", "b"), Question("k", "c", "one"), Question("k", "d")]
    assert by_edit(questions, [1, 0, 0, 1]) == [0.5, 0, 1]
    assert spread(range(10), 4) == [0, 2, 5, 7] and spread(range(3), 9) == [0, 1, 2] and spread([], 3) == []
