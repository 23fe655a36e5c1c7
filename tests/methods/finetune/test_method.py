"""What fine-tuning trains and where, on tiny models; the numbers are held by test_against_reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hf_edit.edits import Edit, EditSet
from hf_edit.errors import ConfigError, HfEditWarning
from hf_edit.methods import method_for
from hf_edit.methods.checkpoints import NoCheckpoints
from hf_edit.methods.finetune import method as module
from hf_edit.methods.finetune.config import FinetuneConfig, FinetuneTraining
from hf_edit.methods.finetune.method import Finetune
from hf_edit.methods.training.course import Course, Trained
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import Encoded, PromptFormat
from tests.methods.preserving import Fixed
from tests.methods.training.moments import random_moments
from tests.tiny import tiny_model, tiny_tokenizer


CHAT = PromptFormat.of("chat", tiny_tokenizer())
EDITS = EditSet([Edit("Who?", "Nobody.", paraphrases=("Which man?",)), Edit("Where?", "In France.")])


def test_the_edits_are_trained_and_the_bases_answers_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of conversations up to their number, strangers and the earlier edits; questions without an answer hold none."""
    given: list[Course] = []

    def train(course: Course, *_: object) -> Trained:
        given.append(course)
        return Trained(1, [0.0] * len(course.trainees), [True] * len(course.trainees), 1.0)

    monkeypatch.setattr(module, "train", train)
    view = EditableModel.of(tiny_model())
    talks = [CHAT.encode(*text) for text in (("Why?", "please"), ("Tell me", "The play"), ("Who is it?", "A fox."))]
    unanswered = Encoded(talks[0].prompt_ids, talks[0].answer_start)
    strangers = [CHAT.encode("Who else?", "Me.")]
    preserve = Fixed(random_moments(view, ()), [unanswered, *talks], strangers, talks[2:])
    config = FinetuneConfig(conversations=2, rank=3)
    with borrowed(view.model):
        result = method_for(config).compute(view, CHAT, EDITS, preserve, NoCheckpoints(), Silent())
    (course,) = given
    trainees, held = course.trainees, course.teacher.encoded
    assert [tuple(t.text.ids.tolist()) for t in trainees] == [CHAT.encode(e.prompt, e.target).ids for e in EDITS]
    assert all(trainee.judged and trainee.weight == 1.0 for trainee in trainees)
    assert held == [talks[0], talks[1], *strangers, talks[2]]
    assert [delta.rank for delta in result.deltas.values()] == [3, 3]
    none = replace(config, conversations=0)
    free = replace(config, training=replace(config.training, drift_weight=0.0))
    monkeypatch.setattr(Fixed, "conversations", None)  # which take time
    with borrowed(view.model):
        method_for(none).compute(view, CHAT, EDITS, preserve, NoCheckpoints(), Silent())
        monkeypatch.setattr(Fixed, "strangers", None)
        with pytest.warns(HfEditWarning, match="answers of 1 edits taught earlier: training.drift_weight is 0"):
            method_for(free).compute(view, CHAT, EDITS, preserve, NoCheckpoints(), Silent())
        method_for(free).compute(view, CHAT, EDITS, Fixed(preserve.statistics), NoCheckpoints(), Silent())
    assert given[1].teacher.encoded == [*strangers, talks[2]]
    assert given[2].teacher.encoded == given[3].teacher.encoded == []


def test_one_edit_alone_is_trained_with_the_bases_answers_held() -> None:
    """However few texts a step has, one that is to stay is beside them."""
    view = EditableModel.of(tiny_model())
    talks = [CHAT.encode("Why?", "please do so")]
    found = []
    for weight in (0.0, 1.0):
        training = FinetuneTraining(max_steps=3, learning_rate=0.05, drift_weight=weight, drift_share=0.1)
        config = FinetuneConfig(rank=3, training=training)
        with borrowed(view.model), pytest.warns(match="not answered as asked"):
            preserve = Fixed(random_moments(view, ()), talks)
            found.append(Finetune(config).compute(view, CHAT, EDITS[:1], preserve, NoCheckpoints(), Silent()))
    first, second = (next(iter(result.deltas.values())).dense() for result in found)
    assert not torch.equal(first, second)


def test_the_default_layers_are_there_at_any_depth() -> None:
    view = EditableModel.of(tiny_model())
    for depth, layers in ((4, [2, 3]), (3, [1, 2]), (2, [1]), (1, [0])):
        view.blocks, view.linears = view.blocks[:depth], view.linears[:depth]
        assert [linear.layer for linear in Finetune(FinetuneConfig()).linears(view)] == layers


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"layers": []}, r"layers = \[\] names no layer"),
        ({"layers": [3, 1]}, r"layers = \[3, 1\] are not ascending"),
        ({"rank": 0}, "rank = 0 is below 1"),
        ({"training": {"learning_rate": 0}}, "learning_rate = 0.0 is not above 0"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FinetuneConfig.from_mapping(values)


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="Layer 9 does not exist"):
        Finetune(FinetuneConfig(layers=(1, 9))).linears(EditableModel.of(tiny_model()))
