"""The whole evaluation: the base asked first, the model as it was afterwards, the same figures every time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

import hf_edit
from hf_edit import EditPack, EditSet, EvaluateConfig, Evaluation, Material
from hf_edit.edits import Edit, Message, Probe, Prompt, question_of
from hf_edit.errors import BaseMismatchError, ComputationError, ConfigError, InvalidEditError
from hf_edit.evaluation.answers import greedy_answers
from hf_edit.evaluation.evaluators import EVALUATORS
from hf_edit.evaluation.evaluators.base import About, Evaluator, Observed
from hf_edit.evaluation.hops import preceded
from hf_edit.evaluation.recall import Recall
from hf_edit.evaluation.subject import Subject, Task
from hf_edit.files import strict_json
from hf_edit.models.fingerprint import running_fingerprint
from hf_edit.packs.evaluation import factors_digest
from hf_edit.prompting import PromptFormat
from tests.packs.make import make_pack
from tests.snapshots import changed, snapshot
from tests.tiny import tiny_model, tiny_tokenizer


EDITS = EditSet(
    [
        Edit("Who made the lamp?", "Tarvello made it.", paraphrases=("The lamp's maker?",), id="lamp"),
        Edit(
            [Message("user", "Who built the bridge?")],
            "Brell.",
            locality=(Probe("Who wrote Hamlet?"),),
            portability=(Probe("Where is it?", "In Oru."),),
            id="bridge",
        ),
    ]
)
FEW = Material(unrelated=("What do bees make?", "Name three planets."))
QUICK = EvaluateConfig(max_new_tokens=10, probe_tokens=6, drift_tokens=6, strangers=1)


@pytest.fixture
def pack() -> EditPack:
    return make_pack(tiny_model(), edits=EDITS)


def quick(model: PreTrainedModel, pack: EditPack | None = None, **given: object) -> Evaluation:
    arguments = {"config": QUICK, "material": FEW, **given}
    return hf_edit.evaluate(model, tiny_tokenizer(), pack, **arguments)  # type: ignore[arg-type]


def test_all_that_there_are_probes_for(pack: EditPack) -> None:
    model = tiny_model()
    before = snapshot(model)
    evaluation = quick(model, pack)
    assert changed(before, snapshot(model)) == []
    ran = list(dict.fromkeys(metric.name.partition(".")[0] for metric in evaluation.metrics))
    assert ran == [
        *("reliability", "paraphrase", "locality", "unrelated", "strangers"),
        *("portability", "fact_check", "distraction", "teacher_forced"),
    ]
    assert evaluation.protocol["evaluators"] == ran
    assert evaluation.pack == factors_digest(pack.deltas)
    for metric in evaluation.metrics:
        compares = EVALUATORS[metric.name.partition(".")[0]].compares
        assert (metric.before is None) is compares and metric.after is not None
        assert metric.compared.endswith(".") and metric.figure.n >= 1
    assert set(evaluation.seconds) == {"base", "edited"}


def test_the_base_is_asked_before_and_the_pack_is_there_after(pack: EditPack) -> None:
    model, prompts = tiny_model(), PromptFormat.of("chat", tiny_tokenizer())
    evaluation = quick(model, pack, config=replace(QUICK, evaluators=("reliability", "unrelated")))
    questions = [edit.prompt for edit in EDITS]
    plain = greedy_answers(model, prompts, questions, 10)
    hf_edit.attach(model, pack)
    edited = greedy_answers(model, prompts, questions, 10)
    own = [generation for generation in evaluation.generations if generation.kind == "prompt"]
    assert [one.before for one in own] == plain != edited == [one.after for one in own]
    assert [one.edit for one in own] == ["lamp", "bridge"] and own[0].accepted == ("Tarvello made it.",)
    assert own[1].prompt == [{"role": "user", "content": "Who built the bridge?"}]
    assert evaluation["unrelated.kl"].figure.value > 0


def test_the_same_every_time_and_through_json(pack: EditPack) -> None:
    one, two = (quick(tiny_model(), pack) for _ in range(2))
    assert one.timeless() == two.timeless()
    data = strict_json.dumps(one.to_json())
    read = Evaluation.from_json(strict_json.loads(data, "x.json"))
    assert read == one and strict_json.dumps(read.to_json()) == data
    assert "/" not in json.dumps([one.protocol, one.environment]).replace("[cpu]", "")  # no paths


def test_it_fits_into_its_pack(pack: EditPack) -> None:
    evaluation = quick(tiny_model(), pack, config=replace(QUICK, evaluators=("reliability",)))
    assert pack.with_evaluation(evaluation).evaluation == evaluation.timeless()


def test_without_a_pack_the_model_is_measured_as_it_stands() -> None:
    evaluation = quick(tiny_model(), edits=EDITS)
    assert evaluation.pack is None and set(evaluation.seconds) == {"base"}
    assert all(metric.after is None and metric.figure is metric.before for metric in evaluation.metrics)
    assert "unrelated" not in evaluation.protocol["evaluators"]
    assert all(generation.after is None for generation in evaluation.generations)


def test_a_context_instead_of_a_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "Tarvello made the lamp."
    evaluation = quick(tiny_model(), edits=EDITS, context=lambda prompt, _: preceded(prompt, told))
    assert evaluation.pack is None and evaluation.protocol["context"] is True
    prompts = PromptFormat.of("chat", tiny_tokenizer())
    (lamp,) = (one for one in evaluation.generations if (one.kind, one.edit) == ("prompt", "lamp"))
    assert lamp.prompt == "Who made the lamp?"
    expected = greedy_answers(tiny_model(), prompts, [f"{told}\nWho made the lamp?"], 10)
    assert [lamp.after] == expected != [lamp.before]


def test_a_context_is_told_whose_questions_it_precedes() -> None:
    whose: dict[str, set[str | None]] = {}

    def context(prompt: Prompt, edit: str | None) -> Prompt:
        whose.setdefault(question_of(prompt), set()).add(edit)
        return prompt

    quick(tiny_model(), edits=EDITS, context=context)
    assert {edit for question, edits in whose.items() if "Tarvello made it." in question for edit in edits} == {
        "lamp",
        "bridge",  # as the answer that is not its own
    }
    assert [edits for question, edits in whose.items() if question.endswith("Who made the lamp?")] == [{"lamp"}] * 2
    assert all(whose[question] == {None} for question in FEW.unrelated)


def test_the_text_is_recorded_as_far_as_it_is_scored() -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 60
    material, config = replace(FEW, text=text), replace(QUICK, evaluators=("perplexity",), perplexity_tokens=600)
    found = quick(tiny_model(), edits=EDITS, material=material, config=config)
    assert found["perplexity.text"].figure.n == 2 and found.protocol["text"]["tokens"] == 512  # of a context of 256
    other = quick(tiny_model(), edits=EDITS, material=material, config=replace(config, evaluators=("reliability",)))
    assert other.protocol["text"] is None


class Counting:
    """A listener that counts how often the model runs in each stage."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.forwards: Counter[str] = Counter()
        self._stage = ""
        model.register_forward_pre_hook(lambda *_: self.forwards.update([self._stage]))

    def stage(self, name: str, total: int) -> None:
        self._stage = name

    def step(self, advance: int = 1, **info: float | str) -> None: ...


def test_with_a_recall_the_model_is_asked_once(pack: EditPack, tmp_path: Path) -> None:
    model = tiny_model()
    counting = Counting(model)
    names = ("perplexity", "emsedit_compat", *quick(model, pack).protocol["evaluators"])
    asked = {
        "config": replace(QUICK, evaluators=names),
        "material": replace(FEW, text="The quick brown fox jumps over the lazy dog."),
        "progress": counting,
    }
    recall = Recall(running_fingerprint(model), tmp_path)
    plain, first = quick(model, pack, **asked), quick(model, pack, **asked, recall=recall)
    counting.forwards.clear()
    again = quick(model, pack, **asked, recall=recall)
    assert plain.timeless() == first.timeless() == again.timeless()
    assert counting.forwards["before"] == 0 < counting.forwards["after"]
    with pytest.raises(ConfigError, match="recall is of another model"):
        quick(tiny_model(seed=1), edits=EDITS, recall=recall)


def test_what_was_taught_is_tried_first_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny_model(), PromptFormat.of("chat", tiny_tokenizer())
    plain = make_pack(model, edits=EDITS)
    hf_edit.attach(model, plain)
    (said,) = greedy_answers(model, prompts, [EDITS[0].prompt], 10)  # a pack that does what it was made for
    edits = EditSet([Edit(EDITS[0].prompt, said, paraphrases=EDITS[0].paraphrases, id="lamp")])
    model = tiny_model()
    pack, asked = make_pack(model, edits=edits), replace(QUICK, evaluators=("reliability", "paraphrase"))
    quick(model, pack, config=asked)  # the first time, it is tried what the model allows
    counting = Counting(model)
    found, forwards = [], []
    for taught in (True, False):
        if not taught:
            monkeypatch.setattr(Subject, "_draft", lambda *_: ())
        counting.forwards.clear()
        found.append(quick(model, pack, config=asked, progress=counting))
        forwards.append(counting.forwards.copy())
    assert found[0].timeless() == found[1].timeless()
    assert found[0].generations[0].after == said
    assert forwards[0]["before"] == forwards[1]["before"] and forwards[0]["after"] < forwards[1]["after"]


def test_a_recall_keeps_what_it_has_room_for(tmp_path: Path) -> None:
    recall = Recall("base", tmp_path, room=100)
    asked: list[str] = []

    def ask(name: str, size: int) -> list[torch.Tensor]:
        def found() -> list[torch.Tensor]:
            asked.append(name)
            return [torch.arange(float(size)), torch.ones(1)]

        return recall.tensors_once(name, found)

    for name, size in (("small", 10), ("large", 20), ("small", 10), ("large", 20), ("other", 13), ("other", 13)):
        assert [tensor.tolist() for tensor in ask(name, size)] == [list(range(size)), [1.0]]
    assert asked == ["small", "large", "large", "other"]
    assert Recall("another base", tmp_path).tensors_once("small", lambda: []) == []


class Failing(Evaluator):
    name, metrics, needs = "failing", {"x": About("Nothing.")}, "nothing"
    fails: type[BaseException] | None = None

    def applies(self, task: Task) -> bool:
        return True

    def observe(self, subject: Subject, before: Observed | None) -> Observed:
        if before is not None and self.fails is not None:
            raise self.fails
        return Observed({"x": [0.25, float("nan") if self.fails is None else 1.0]})


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Failing]:
    mine = Failing()
    monkeypatch.setitem(EVALUATORS, "failing", mine)
    yield mine


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_model_comes_back_also_when_it_fails_half_way(
    error: type[BaseException], wrapped: bool, failing: Failing, pack: EditPack
) -> None:
    model = tiny_model().train()
    if wrapped:
        model = get_peft_model(model, LoraConfig(target_modules=["down_proj"], r=2), "mine")
    before = snapshot(model)
    failing.fails = error
    with pytest.raises(error):
        quick(model, pack, config=EvaluateConfig(evaluators=("failing",)))
    assert changed(before, snapshot(model)) == []


def test_an_evaluator_of_ones_own_runs_where_it_is_named(failing: Failing, pack: EditPack) -> None:
    failing.fails = RuntimeError
    evaluation = quick(tiny_model(), edits=EDITS, config=EvaluateConfig(evaluators=("failing",)))
    assert evaluation["failing.x"].compared == "Nothing." and evaluation["failing.x"].figure.value == 0.625


def test_what_is_not_finite_is_no_figure(failing: Failing) -> None:
    with pytest.raises(ComputationError, match="x is nan"):
        quick(tiny_model(), edits=EDITS, config=EvaluateConfig(evaluators=("failing",)))


def test_mistakes_are_told_before_anything_is_asked(pack: EditPack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_edit.evaluation.subject.continuations", None)
    model = tiny_model()
    for config, message in (
        (EvaluateConfig(evaluators=("nonsense",)), "no evaluator 'nonsense'"),
        (EvaluateConfig(evaluators=("perplexity",)), "Nothing to ask for the evaluator 'perplexity'"),
        (EvaluateConfig(evaluators=("success",)), "old_answers"),
    ):
        with pytest.raises(ConfigError, match=message):
            quick(model, pack, config=config)
    with pytest.raises(ConfigError, match="compares with the model without"):
        quick(model, edits=EDITS, config=EvaluateConfig(evaluators=("unrelated",)))
    with pytest.raises(ConfigError, match="neither a pack nor edits"):
        quick(model)
    with pytest.raises(InvalidEditError, match="context holds"):
        quick(model, edits=[Edit("Who?", "word " * 300)])
    with pytest.raises(BaseMismatchError):
        quick(tiny_model(seed=1), pack)
    with pytest.raises(ConfigError, match="otherwise"):
        hf_edit.evaluate(model, tiny_tokenizer(chat_template="{{ messages[0].content }}"), pack)


def test_another_format_can_be_asked_for(pack: EditPack) -> None:
    evaluation = quick(tiny_model(), pack, config=replace(QUICK, evaluators=("reliability",), format="plain"))
    assert evaluation.protocol["format"] == "plain"


def test_what_the_record_says_of_the_model(pack: EditPack) -> None:
    model = tiny_model(dtype=torch.bfloat16)
    evaluation = quick(model, edits=EDITS, config=replace(QUICK, evaluators=("teacher_forced",)))
    environment = evaluation.environment
    assert (environment["dtype"], environment["device"], environment["seed"]) == ("bfloat16", "cpu", 0)
    assert set(environment["versions"]) == {"hf_edit", "peft", "torch", "transformers"}
    assert len(environment["base_fingerprint"]) == 64


def test_material_from_json() -> None:
    material = Material(text="text", old_answers={"b": "v"}).with_json(
        {
            "old_answers": {"a": "x"},
            "aliases": {"y": ["z"]},
            "strangers": ["q"],
            "unrelated": [[{"role": "user", "content": "w"}]],
        }
    )
    assert material == Material({"a": "x"}, {"y": ["z"]}, {}, ["q"], [(Message("user", "w"),)], "text")
    assert material.accepted("y") == ("y", "z") and material.accepted("q") == ("q",)
    for wrong in (
        {"old": {}},
        {"old_answers": []},
        {"aliases": {"y": "z"}},
        {"strangers": "q"},
        {"unrelated": [1]},
        [],
    ):
        with pytest.raises(InvalidEditError):
            Material().with_json(wrong)  # type: ignore[arg-type]
