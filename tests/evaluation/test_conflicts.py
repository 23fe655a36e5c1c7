"""The whole report, with and without a model: what is measured, and that the model comes back."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

import hf_edit.evaluation.interference as measuring
from hf_edit import conflicts
from hf_edit.compose.attach import attach, detach
from hf_edit.edits import Edit, EditSet
from hf_edit.errors import BaseMismatchError, ComposeError, ConfigError
from hf_edit.evaluation.answers import greedy_answers
from hf_edit.evaluation.conflicts import conflicts as compare
from hf_edit.packs.pack import EditPack
from hf_edit.prompting import PromptFormat
from tests.packs.make import make_pack, random_deltas
from tests.snapshots import changed, snapshot
from tests.tiny import tiny_model, tiny_tokenizer


QUESTIONS = ("What is the capital of Veldora?", "Who wrote the play?")


def with_own_answers(model: torch.nn.Module, seed: int, *questions: str, wrong: str | None = None) -> EditPack:
    """A pack of a random update whose targets are what the model answers with it: right alone, by construction."""
    prompts = PromptFormat.of("chat", tiny_tokenizer())
    deltas = random_deltas(model, (2, 3), size=1.0, seed=seed)
    drawn = make_pack(model, deltas=deltas)
    name = attach(model, drawn)
    answers = greedy_answers(model, prompts, questions, max_new_tokens=12)
    detach(model, name)
    edits = [Edit(q, a.strip(), id=f"{seed}-{i}") for i, (q, a) in enumerate(zip(questions, answers, strict=True))]
    if wrong is not None:
        edits.append(Edit(wrong, "never said", id=f"{seed}-wrong"))
    return make_pack(model, deltas=deltas, edits=EditSet(edits))


@pytest.fixture(autouse=True)
def no_longer_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models do not stop by themselves: answers cut at the same length can be right."""
    monkeypatch.setattr(
        measuring,
        "edit_answers",
        lambda model, prompts, edits: greedy_answers(model, prompts, [edit.prompt for edit in edits], 12),
    )


@cache
def packs() -> tuple[EditPack, ...]:
    """Of the tiny Llama: the first also lists an edit that it does not teach, and asks what the second asks."""
    model = tiny_model()
    return (
        with_own_answers(model, 1, *QUESTIONS, wrong="Is this so?"),
        with_own_answers(model, 2, "Which city is the capital of Veldora?"),
        with_own_answers(model, 3, "Tell me about Mount Fuji"),
    )


def test_without_a_model(tmp_path: Path) -> None:
    one, other = packs()[:2]
    other.save_pretrained(tmp_path / "other")
    report = conflicts(one, tmp_path / "other")
    assert report.packs == ("pack 1", "other")
    assert [f.kind for f in report.conflicts] == ["paraphrase"]
    assert len(report.ranges) == 2 and report.interference is None and not report.keys
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["conflicts"] == 1
    assert compare([one, other]).to_json()["findings"] == compare(one, other).to_json()["findings"]


def test_interference_is_what_asking_by_hand_gives() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    given = list(packs())
    before = snapshot(model)
    report = compare(given, model=model, tokenizer=tokenizer)
    assert changed(before, snapshot(model)) == []
    measured = report.interference
    assert measured is not None
    assert [row[i] for i, row in enumerate(measured.kept)] == [2 / 3, 1, 1]
    prompts = PromptFormat.of("chat", tokenizer)
    for i, first in enumerate(given):
        for j, second in enumerate(given):
            if i == j:
                continue
            names = [attach(model, given[k], f"p{k}") for k in sorted((i, j))]
            said = greedy_answers(model, prompts, [edit.prompt for edit in first.edits], 12)
            for name in names:
                detach(model, name)
            outcomes = [o for o in measured.edits if o.edit.pack == i]
            assert [o.beside[j].answer for o in outcomes] == said
            right = [o for o in outcomes if o.alone.right]
            assert measured.kept[i][j] == sum(o.beside[j].right for o in right) / len(right)
    lost = {(f.first.id, f.second.pack) for f in report.findings if f.kind == "interference"}
    assert lost and lost == {
        (o.edit.id, j) for o in measured.edits for j, a in o.beside.items() if o.alone.right and not a.right
    }
    assert all(0 <= f.score <= 1 and f.conflict for f in report.findings if f.kind == "interference")
    json.dumps(report.to_json(), allow_nan=False)


def test_losses_are_those_of_a_plain_forward() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    given = packs()[:2]
    measured = compare(given, model=model, tokenizer=tokenizer).interference
    assert measured is not None
    prompts, outcome = PromptFormat.of("chat", tokenizer), measured.edits[1]
    text = prompts.encode(given[0].edits[1].prompt, given[0].edits[1].target)
    for attached_packs, loss in ((given[:1], outcome.alone.loss), (given, outcome.beside[1].loss)):
        names = [attach(model, pack, f"p{i}") for i, pack in enumerate(attached_packs)]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([text.ids])).logits[0, text.answer_start - 1 : -1]
        for name in names:
            detach(model, name)
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(text.answer_ids))
        assert loss == pytest.approx(float(expected), abs=1e-4)


def test_packs_far_apart_keep_each_others_edits() -> None:
    model = tiny_model()
    still = make_pack(model, deltas=random_deltas(model, (1,), size=1e-7), edits=EditSet([Edit("Why?", "So", id="x")]))
    report = compare(with_own_answers(model, 1, *QUESTIONS), still, model=model, tokenizer=tiny_tokenizer())
    assert report.interference is not None
    assert report.interference.kept[0] == (1, 1) and report.interference.kept[1] == (None, 0)
    assert not report.conflicts


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("host", ["plain", "adapter", "PeftModel"])
def test_the_model_comes_back_when_interrupted(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model().train()
    config = LoraConfig(r=2, target_modules=["model.layers.0.mlp.down_proj"], init_lora_weights=False)
    if host == "adapter":
        model.add_adapter(config, "asked_0")  # the name that the measurement would take
    elif host == "PeftModel":
        model = get_peft_model(model, config)
    before = snapshot(model)
    asked = []

    def interrupted_with_two_attached(_: object, __: object, edits: EditSet) -> list[str]:
        asked.append(edits)
        if len(asked) == 3:
            assert changed(before, snapshot(model))
            raise KeyboardInterrupt
        return ["nothing"] * len(edits)

    monkeypatch.setattr(measuring, "edit_answers", interrupted_with_two_attached)
    with pytest.raises(KeyboardInterrupt):
        compare(packs()[:2], model=model, tokenizer=tiny_tokenizer())
    assert changed(before, snapshot(model)) == []


def test_the_order_of_packs_changes_names_alone() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    given = packs()[:2]
    seen = []
    for order in ((0, 1), (1, 0)):
        labels = [f"p{i}" for i in order]
        report = compare([given[i] for i in order], names=labels, model=model, tokenizer=tokenizer)
        seen.append({(f.kind, frozenset((f.first.id, f.second.id)), round(f.score, 3)) for f in report.findings})
    assert seen[0] == seen[1]


@pytest.mark.parametrize("with_model", [False, True])
def test_a_picture(with_model: bool, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    how = {"model": tiny_model(), "tokenizer": tiny_tokenizer()} if with_model else {}
    compare(packs()[:2], **how).picture(tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_compared() -> None:
    model = tiny_model()
    one, other = packs()[:2]
    with pytest.raises(ComposeError, match="1 is given"):
        compare([one])
    with pytest.raises(ConfigError, match="tokenizer"):
        compare(one, other, model=model)
    with pytest.raises(BaseMismatchError):
        compare(one, other, model=tiny_model(seed=1), tokenizer=tiny_tokenizer())
