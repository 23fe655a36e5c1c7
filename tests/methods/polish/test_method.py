"""What polish trains and where, on tiny models; the numbers are held by test_against_reference."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from hf_edit.edits import Edit, EditSet
from hf_edit.errors import ConfigError
from hf_edit.methods.checkpoints import NoCheckpoints
from hf_edit.methods.polish import method as module
from hf_edit.methods.polish.config import PolishConfig, PolishSettings
from hf_edit.methods.polish.method import Polish, polished_linears, rewritten
from hf_edit.methods.rank import default_rank
from hf_edit.methods.training import teacher
from hf_edit.methods.training.config import TrainingConfig
from hf_edit.methods.training.course import Course, Trained, Trainee
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.support import touched_columns
from hf_edit.wordings import rewrites
from tests.methods.preserving import Fixed
from tests.methods.training.moments import random_moments
from tests.tiny import tiny_model, tiny_tokenizer


pytestmark = pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning")  # one step teaches nothing

CHAT = PromptFormat.of("chat", tiny_tokenizer())
ONE_STEP = TrainingConfig(max_steps=1)


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[Trainee]:
    """What training is given, instead of training."""
    seen: list[Trainee] = []

    def train(course: Course, *_: object) -> Trained:
        seen.extend(course.trainees)
        return Trained(1, [0.0] * len(course.judged), [True] * len(course.judged), 1.0)

    monkeypatch.setattr(module, "train", train)
    return seen


def compute(edits: EditSet, family: str = "llama", **values: object) -> dict[str, LowRankDelta]:
    view = EditableModel.of(tiny_model(family))
    config = PolishConfig(**{"layers": (2,), "training": ONE_STEP, **values})
    with borrowed(view.model):
        preserve = Fixed(random_moments(view))
        return dict(Polish(config).compute(view, CHAT, edits, preserve, NoCheckpoints(), Silent()).deltas)


# ---- what is trained -------------------------------------------------------------------------------------------

EDITS = EditSet(
    [
        Edit("Who built the Tall Bridge?", "The Brell company built it in the year 1901.", subject="the Tall Bridge"),
        Edit("What is the capital of Veldora?", "Port Amber.", paraphrases=("Veldora's capital?",)),
    ]
)


def test_edits_are_judged_and_wordings_help(trained_on: list[Trainee]) -> None:
    compute(EDITS, wordings=2, wording_tokens=4, wording_weight=0.25, seed=3)
    asked = [CHAT.encode(edit.prompt, edit.target) for edit in EDITS]
    for trainee, whole in zip(trained_on, asked, strict=False):
        assert tuple(trainee.text.ids.tolist()) == whole.ids and trainee.judged and trainee.weight == 1.0
    others = [(e, prompt) for e in EDITS for prompt in rewrites(e.prompt, 2, 3, subject=e.subject)]
    assert len(trained_on) == 2 + 4
    for trainee, (edit, prompt) in zip(trained_on[2:], others, strict=True):
        whole = CHAT.encode(prompt, edit.target)
        assert tuple(trainee.text.ids.tolist()) == whole.ids[: whole.answer_start + 4]
        assert trainee.text.start == whole.answer_start
        assert not trainee.judged and trainee.weight == 0.25


def test_paraphrases_are_left_for_the_test_unless_asked_for(trained_on: list[Trainee]) -> None:
    paraphrase = CHAT.prompt_ids("Veldora's capital?")
    for given in (False, True):
        trained_on.clear()
        compute(EDITS, wordings=2, train_paraphrases=given)
        prompts = [tuple(trainee.text.ids[: trainee.text.start].tolist()) for trainee in trained_on]
        assert (paraphrase in prompts) == given
        assert len(prompts) == 2 + 4 + given


def test_the_same_question_in_another_chat(trained_on: list[Trainee]) -> None:
    kinds = ("system", "turn")
    compute(EDITS, wordings=2, wording_kinds=kinds, seed=3)
    prompts = [tuple(trainee.text.ids[: trainee.text.start].tolist()) for trainee in trained_on[2:]]
    expected = [CHAT.prompt_ids(p) for e in EDITS for p in rewrites(e.prompt, 2, 3, kinds, subject=e.subject)]
    assert prompts == expected and all(len(p) > len(CHAT.prompt_ids(EDITS[0].prompt)) for p in prompts[:2])
    plain = PromptFormat.of("plain", tiny_tokenizer())
    assert not rewritten(plain, EDITS, 2, kinds, 4, 0, longest=None)
    stern = tiny_tokenizer()
    stern.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}" + str(
        stern.chat_template
    )
    assert len(rewritten(PromptFormat.of("chat", stern), EDITS, 2, kinds, 4, 0, longest=None)) == len(EDITS)
    with pytest.raises(ConfigError, match="none of content, drop"):
        PolishConfig(wording_kinds=("song",))


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_wordings_that_the_context_does_not_hold_are_left_out(family: str, trained_on: list[Trainee]) -> None:
    """Of a question that nearly fills it; learned positions end there."""
    question = "Who is"
    while len(CHAT.encode(f"{question} a?", "Me.")) <= 256:
        question += " a"
    edits = EditSet([Edit(f"{question}?", "Me.")])
    assert any(len(CHAT.encode(prompt, "Me.")) > 256 for prompt in rewrites(edits[0].prompt, 5, 0))
    compute(edits, family, wordings=5)
    lengths = [len(trainee.text.ids) for trainee in trained_on]
    assert max(lengths) <= 256 and 1 < len(lengths) < 6


# ---- where -----------------------------------------------------------------------------------------------------


def test_the_default_layers_lie_in_the_middle_of_any_depth() -> None:
    view = EditableModel.of(tiny_model())
    for depth, layers in ((4, [2, 3]), (3, [1, 2]), (2, [1]), (1, [0])):
        view.blocks, view.linears = view.blocks[:depth], view.linears[:depth]
        assert [linear.layer for linear in polished_linears(view, PolishSettings())] == layers


def test_what_a_start_changes_is_trained_too() -> None:
    view = EditableModel.of(tiny_model())
    chosen = PolishSettings(layers=(1, 2))
    down, query = view.linears[2].name, "model.layers.0.self_attn.q_proj"
    delta = LowRankDelta(torch.zeros(1, 1), torch.zeros(1, 1))
    found = polished_linears(view, chosen, {down: delta, query: delta})
    assert [linear.name for linear in found] == [query, view.linears[1].name, down]
    assert [linear.name for linear in polished_linears(view, chosen)] == [view.linears[1].name, down]


@pytest.mark.parametrize("times", [1, 1000])
def test_a_start_that_is_worse_than_nothing_is_not_taken(times: int, recwarn: pytest.WarningsRecorder) -> None:
    good = compute(EDITS, rank=4, training=TrainingConfig(max_steps=10))
    start = {name: LowRankDelta(times * delta.B, delta.A) for name, delta in good.items()}
    view = EditableModel.of(tiny_model("llama"))
    # no step is long enough to leave where training begins
    config = PolishConfig(layers=(2,), rank=4, training=replace(ONE_STEP, learning_rate=1e-12, shrink=False))
    with borrowed(view.model):
        preserve = Fixed(random_moments(view))
        found = Polish(config, start).compute(view, CHAT, EDITS, preserve, NoCheckpoints(), Silent()).deltas
    for name, delta in found.items():
        begun = start[name].dense() if times == 1 else torch.zeros(delta.shape)
        assert torch.allclose(delta.dense(), begun, atol=1e-6)
    assert any("better begun with nothing" in str(warning.message) for warning in recwarn) == (times > 1)


def test_polishing_that_loses_answers_leaves_the_update_as_it_was(recwarn: pytest.WarningsRecorder) -> None:
    """What one far too long step makes of it answers less than what it was given."""
    edits = EditSet([Edit("Who wrote it?", "the fox"), Edit("What is the capital?", "a dog")])
    learned = TrainingConfig(
        max_steps=60, learning_rate=0.3, stop_loss=4.6, drift_weight=0.0, size_weight=0.0, shrink=False
    )
    start = compute(edits, layers=(1, 2), rank=40, wordings=0, training=learned)
    view, found = EditableModel.of(tiny_model("llama")), []
    for rate in (0.3, 1000.0):
        training = replace(learned, max_steps=1, learning_rate=rate, stop_loss=1e-9)
        config = PolishConfig(layers=(1, 2), rank=40, wordings=0, training=training)
        with borrowed(view.model):
            preserve = Fixed(random_moments(view))
            found.append(Polish(config, start).compute(view, CHAT, edits, preserve, NoCheckpoints(), Silent()))
    fine, lost = found
    for name, delta in start.items():
        assert torch.allclose(lost.deltas[name].dense(), delta.dense(), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(fine.deltas[name].dense(), delta.dense(), rtol=1e-4, atol=1e-5)
    assert all(lost.receipt[edit.id]["right"] and fine.receipt[edit.id]["right"] for edit in edits)
    said = [str(one.message) for one in recwarn if "Polishing lost" in str(one.message)]
    assert len(said) == 1 and re.match(r"Polishing lost [12] of the 2 answers that the update gave", said[0])


@pytest.mark.parametrize(
    ("edits", "tokens", "rank"),
    [
        (1, 5, 32),
        (1, 450, 32),
        (3, 130, 96),
        (8, 130, 256),
        (32, 130, 512),
        (32, 128, 512),
        (32, 40, 256),
        (64, 5, 256),
        (65, 5, 260),
        (100, 5, 400),
        (100, 80, 1000),
    ],
)
def test_the_default_rank(edits: int, tokens: int, rank: int) -> None:
    assert default_rank([tokens] * edits) == rank


def test_the_rank_is_bounded() -> None:
    (delta,) = compute(EDITS, rank=3).values()
    assert delta.rank == 3
    (delta,) = compute(EDITS[:1], rank=None, wordings=0).values()
    assert delta.rank <= 32


def test_a_budget_of_columns() -> None:
    """Of few, and exactly as the layout sparse has them."""
    found = compute(EDITS, columns=7)
    (indices, values) = next(touched_columns(delta) for delta in found.values())
    (delta,) = found.values()
    assert len(indices) == delta.rank == 7
    assert torch.equal(delta.dense()[:, indices], values) and set(delta.A.unique().tolist()) == {0.0, 1.0}
    (alike,) = compute(EDITS, column_bytes=7 * 4 * (delta.shape[0] + 1) + 3).values()
    assert torch.equal(alike.dense(), delta.dense())


def test_a_budget_below_what_is_there_to_polish() -> None:
    (start,) = compute(EDITS, columns=7).items()
    view = EditableModel.of(tiny_model())
    with borrowed(view.model), pytest.raises(ConfigError, match="changes 7 columns of .*, and the budget is 5"):
        config = PolishConfig(layers=(2,), training=ONE_STEP, columns=5)
        preserve = Fixed(random_moments(view))
        Polish(config, dict([start])).compute(view, CHAT, EDITS, preserve, NoCheckpoints(), Silent())


def test_decoys_teach_questions_of_the_statistics_the_answers_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Course] = []

    def train(course: Course, *_: object) -> Trained:
        runs.append(course)
        return Trained(1, [0.0] * len(course.judged), [True] * len(course.judged), 1.0)

    monkeypatch.setattr(module, "train", train)
    talks = [
        CHAT.encode(question, answer) for question, answer in (("Where?", "here"), ("Who?", "me"), ("Why?", "so"))
    ]
    view = EditableModel.of(tiny_model())
    with borrowed(view.model):
        preserve = Fixed(random_moments(view), asked=talks)
        config = PolishConfig(layers=(2,), decoys=2, strangers=0)
        Polish(config).compute(view, CHAT, EDITS, preserve, NoCheckpoints(), Silent())
    assert [len(course.decoys) for course in runs] == [0, 0, 2]
    own = {talk.prompt_ids: talk.answer_ids for talk in talks}
    for trainees in (course.trainees for course in runs[:2]):
        assert len(trainees) == 3
        for one in trainees:
            ids = tuple(one.text.ids.tolist())
            prompt, answer = ids[: one.text.start], ids[one.text.start :]
            assert answer in own.values() and answer != own[prompt]


def test_decoys_need_questions() -> None:
    with pytest.raises(ConfigError, match="of which there are 0"):
        compute(EDITS, decoys=1, strangers=0)


# ---- settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"layers": []}, r"layers = \[\] names no layer"),
        ({"layers": [2, 1]}, r"layers = \[2, 1\] are not ascending"),
        ({"layers": [1, 1]}, r"layers = \[1, 1\] are not ascending"),
        ({"wordings": -1}, "wordings = -1 is below 0"),
        ({"wording_tokens": 0}, "wording_tokens = 0 is below 1"),
        ({"ridge": 0}, "ridge = 0.0 is not above 0"),
        ({"training": {"batch": 0}}, "batch = 0 is below 1"),
        ({"training": {"drift_share": 0}}, "drift_share = 0.0 is not above 0"),
        ({"training": {"speed": 1}}, "'speed' is no setting of TrainingConfig"),
        ({"format": "html"}, "format = 'html' is none of chat, plain, qa"),
        ({"columns": 0}, "columns = 0 is below 1"),
        ({"columns": 3, "column_bytes": 900}, "columns = 3 and column_bytes = 900 are two budgets"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PolishConfig.from_mapping(values)


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="Layer 4 does not exist: the model has 4 blocks"):
        compute(EDITS, layers=(1, 4))


def test_a_rewrite_that_two_edits_share_is_trained_for_neither(trained_on: list[Trainee]) -> None:
    edits = EditSet(
        [
            Edit("When was Barack Obama born?", "1961", subject="Barack Obama"),
            Edit("Where was Barack Obama born?", "Honolulu", subject="Barack Obama"),
        ]
    )
    compute(edits, wordings=1)
    prompts = [tuple(trainee.text.ids[: trainee.text.start].tolist()) for trainee in trained_on]
    assert len(prompts) == len(set(prompts)) == 4
    assert CHAT.prompt_ids("Barack Obama born") not in prompts


def test_what_is_taught_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question of the statistics that is an edit's own."""
    held: list[Encoded] = []
    teach = module.Teacher

    def noting(model: EditableModel, groups: list[list[Encoded]], *rest: object) -> object:
        held.extend(text for group in groups for text in group)
        return teach(model, groups, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "Teacher", noting)
    own, other = (CHAT.encode(question, "Perhaps.") for question in (EDITS[0].prompt, "And who else?"))
    view = EditableModel.of(tiny_model())
    config = PolishConfig(layers=(2,), training=ONE_STEP, strangers=0)
    with borrowed(view.model):
        preserve = Fixed(random_moments(view), asked=(own, other))
        Polish(config).compute(view, CHAT, EDITS, preserve, NoCheckpoints(), Silent())
    assert other.prompt_ids in {text.prompt_ids for text in held}
    assert own.prompt_ids not in {text.prompt_ids for text in held}


@pytest.mark.parametrize(("edits", "each"), [(1, 8), (2, 8), (5, 6), (40, 1)])
def test_many_edits_ask_for_fewer_strangers_each(
    edits: int, each: int, monkeypatch: pytest.MonkeyPatch, trained_on: list[Trainee]
) -> None:
    asked: list[int] = []

    def strangers(_: Fixed, edits: EditSet, count: int) -> list[Encoded]:
        asked.append(count)
        return []

    monkeypatch.setattr(Fixed, "strangers", strangers)
    monkeypatch.setattr(teacher, "MOST_STRANGERS", 30)
    compute(EditSet([Edit(f"Who is number {i}?", "Nobody.") for i in range(edits)]), wordings=0)
    assert asked == [each] and len(trained_on) == edits


def test_a_rewrite_that_an_edit_of_another_part_shares_is_trained_for_neither() -> None:
    both = EditSet([Edit("When was Ada Lovelace born?", "1815."), Edit("Where was Ada Lovelace born?", "London.")])
    kinds = ["content"]
    assert len(rewritten(CHAT, both[:1], 1, kinds, 4, 0, longest=None)) == 1
    for part in (both[:1], both[1:], both):
        assert not rewritten(CHAT, part, 1, kinds, 4, 0, longest=None, every=both)
