"""Stacking and reverting on tiny models: one solve, whatever the order and grouping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hf_edit.api import polish
from hf_edit.compose.adapters import Pack
from hf_edit.compose.asked import taught_by
from hf_edit.compose.attach import attach, detach
from hf_edit.compose.combine import revert, stack
from hf_edit.compose.config import CombineConfig
from hf_edit.edits import Edit, EditSet
from hf_edit.errors import BaseMismatchError, ComposeError, ConfigError, HfEditWarning
from hf_edit.evaluation.answers import greedy_answers
from hf_edit.methods.joining.asked import keys_of
from hf_edit.methods.joining.update import PRESERVATIONS, Join, Joined
from hf_edit.methods.training.texts import Text
from hf_edit.models.editable import EditableModel
from hf_edit.packs.pack import EditPack
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.config import StatisticsConfig
from tests.packs.make import make_pack, random_deltas
from tests.snapshots import snapshot
from tests.tiny import tiny_model, tiny_tokenizer


# random updates answer nothing as asked
pytestmark = pytest.mark.filterwarnings("ignore:.*not answered word for word:hf_edit.errors.HfEditWarning")

CONFIG = CombineConfig(
    rank=64,
    preservation=0.01,
    reverted_tokens=6,
    statistics=StatisticsConfig(tokens=240, conversations=2, answer_tokens=4, length=12, batch=10),
)
QUESTIONS = [
    ("Who wrote the play?", "Tarvello wrote it."),
    ("What is the capital of Veldora?", "Port Amber."),
    ("Tell me about Mount Fuji", "The quick brown fox lives there."),
    ("Who built the Tall Bridge?", "The Brell company."),
]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Weights with which a join holds texts, as they come: last, of each weight tried, taught answers and own ones."""
    weights: list[float] = []
    hold_along = Join.hold_along

    def noted(self: Join, texts: Sequence[Text], weight: float) -> None:
        weights.append(weight)
        hold_along(self, texts, weight)

    monkeypatch.setattr(Join, "hold_along", noted)
    return weights


def pack_of(model, *indices: int, ranks: tuple[int, ...] = (3, 2), name: str = "q") -> EditPack:
    edits = EditSet(Edit(*QUESTIONS[i], id=f"{name}{i}") for i in indices)
    return make_pack(model, deltas=random_deltas(model, ranks, seed=indices[0]), edits=edits)


def stacked(model, *packs: Pack, config: CombineConfig = CONFIG, **options) -> EditPack:
    return stack(packs, model=model, tokenizer=tiny_tokenizer(), config=config, **options)


def difference(one: EditPack, other: EditPack) -> float:
    """Of the products, relative, over all modules."""
    assert set(one.deltas) == set(other.deltas)
    apart = sum(float((one.deltas[n].dense() - other.deltas[n].dense()).double().square().sum()) for n in one.deltas)
    return (apart / sum(delta.norm() ** 2 for delta in one.deltas.values())) ** 0.5


def all_asked(model, pack: EditPack):
    view = EditableModel.of(model)
    linears = view.linears_named(set(pack.deltas))
    taught = taught_by(view, PromptFormat.of("chat", tiny_tokenizer()), pack, linears)
    return {one.edit.id: one.asked for one in taught}


def test_every_order_and_grouping_gives_the_same_update(model) -> None:
    a, b, c = pack_of(model, 0), pack_of(model, 1, 2), pack_of(model, 3)
    together = stacked(model, a, b, c)
    for other in (
        stacked(model, c, a, b),
        stacked(model, stacked(model, a, b), c),
        stacked(model, c, stacked(model, b, a)),
    ):
        assert difference(together, other) <= 1e-4
        assert set(other.edits.ids) == {"q0", "q1", "q2", "q3"}


def test_grouping_is_of_no_consequence_through_files(model, tmp_path) -> None:
    a, b, c = pack_of(model, 0), pack_of(model, 1), pack_of(model, 2)
    stacked(model, a, b).save_pretrained(tmp_path / "ab")
    c.save_pretrained(tmp_path / "c")
    assert difference(stacked(model, a, b, c), stacked(model, tmp_path / "ab", tmp_path / "c")) <= 1e-4


def test_packs_of_different_blocks(model) -> None:
    a, b = pack_of(model, 0, ranks=(3,)), pack_of(model, 1, ranks=(2, 2, 1))
    together = stacked(model, a, b)
    assert set(together.deltas) == set(b.deltas)
    assert difference(together, stacked(model, b, a)) <= 1e-4


def test_grouping_is_of_no_consequence_where_packs_change_different_blocks(model) -> None:
    a, b, c = pack_of(model, 0, ranks=(3,)), pack_of(model, 1, ranks=(2, 2, 1)), pack_of(model, 2, ranks=(1, 2))
    together = stacked(model, a, b, c)
    for other in (stacked(model, stacked(model, a, b), c), stacked(model, a, stacked(model, b, c))):
        assert difference(together, other) <= 1e-4
    asked, own = all_asked(model, stacked(model, a, b))["q0"], all_asked(model, a)["q0"]
    assert asked.values.keys() == own.values.keys()  # no values at blocks that its own pack left alone
    assert all(torch.equal(asked.values[name], own.values[name]) for name in own.values)


def test_one_pack_alone_keeps_what_it_does_along_its_text(model) -> None:
    pack = pack_of(model, 0)
    again = stacked(model, pack, config=replace(CONFIG, preservation=1e-7))
    after = all_asked(model, replace(again, source=None))
    for id, before in all_asked(model, pack).items():
        for name, values in before.values.items():
            assert float((after[id].values[name] - values).norm()) <= 0.02 * float(values.norm())


def test_the_keys_are_those_of_the_edited_model(model) -> None:
    pack = pack_of(model, 0, 1)
    attach(model, pack, "pack")
    try:
        view = EditableModel.of(model)
        prompts, linears = PromptFormat.of("chat", tiny_tokenizer()), view.linears_named(set(pack.deltas))
        ids = [prompts.encode(edit.prompt, edit.target).ids for edit in pack.edits]
        live = [view.trace(torch.tensor([row[:-1]]), inputs=linears).inputs for row in ids]
    finally:
        detach(model, "pack")
    asked = all_asked(model, pack)
    # a pack that says what every token gets gives the same keys without its factors
    told = replace(pack, source=[one.source() for one in asked.values()])
    view = EditableModel.of(model)
    linears = view.linears_named(set(pack.deltas))
    for found in (asked, all_asked(model, told)):
        for one, expected in zip(found.values(), live, strict=True):
            keys = keys_of(view, one, linears, linears[0].layer)
            for name in pack.deltas:
                assert torch.allclose(keys[name], expected[name][0], atol=1e-5)


def test_a_sum_is_exact_and_says_how_packs_disturb_each_other(model) -> None:
    a, b = pack_of(model, 0), pack_of(model, 1, ranks=(4, 4))
    with pytest.warns(HfEditWarning, match="Other packs move 2 of 2 edits"):
        total = stacked(model, a, b, mode="add")
    for name, delta in total.deltas.items():
        assert torch.allclose(delta.dense(), a.deltas[name].dense() + b.deltas[name].dense(), atol=1e-6)
    disturbance = total.manifest.receipt["disturbance"]
    assert set(disturbance) == {"q0", "q1"} and all(value > 0.01 for value in disturbance.values())
    assert stacked(model, a, mode="add").manifest.receipt["disturbance"]["q0"] == pytest.approx(0, abs=1e-5)


def test_a_reverted_edit_gets_nothing_and_comes_back_when_stacked_again(model) -> None:
    a, b = pack_of(model, 0, 1), pack_of(model, 2)
    both = stacked(model, a, b)
    less = revert(both, ["q1"], model=model, tokenizer=tiny_tokenizer(), config=CONFIG)
    assert set(less.edits.ids) == {"q0", "q2"}

    def effort(pack: EditPack) -> dict[str, float]:
        """What the factors of a pack move along the texts of all three edits."""
        probe = replace(pack, edits=both.edits, source=None)
        return {id: one.effort() for id, one in all_asked(model, probe).items()}

    before, after = effort(both), effort(less)
    assert after["q1"] < 0.05 * before["q1"]
    assert after["q0"] > 0.5 * before["q0"] and after["q2"] > 0.5 * before["q2"]
    assert difference(both, stacked(model, less, a)) <= 1e-4


@pytest.mark.parametrize("weight", [None, 0.0, 1e6])
def test_a_revert_says_whether_the_bases_own_text_is_back(model, weight: float | None) -> None:
    both = stacked(model, pack_of(model, 0, 1), pack_of(model, 2))
    config = replace(CONFIG, reverted_weight=weight, reverted_tokens=12)
    less = revert(both, ["q0", "q1"], model=model, tokenizer=tiny_tokenizer(), config=config)
    asked = [edit for edit in both.edits if edit.id != "q2"]
    base = edit_starts(model, asked, 12)
    name = attach(model, less)
    now = edit_starts(model, asked, 12)
    detach(model, name)
    found = {edit.id: a == b for edit, a, b in zip(asked, base, now, strict=True)}
    assert less.manifest.receipt["own_text"] == found
    assert all(found.values()) or weight == 0.0


def edit_starts(model, edits: Sequence[Edit], tokens: int) -> list[str]:
    """The first tokens of free answers."""
    return greedy_answers(model, PromptFormat.of("chat", tiny_tokenizer()), [edit.prompt for edit in edits], tokens)


@pytest.mark.parametrize(("keeps_below", "back_from", "weights"), [(1, 1e9, [10, 1, 0.1]), (1e9, 100, [10, 100])])
def test_other_edits_come_before_the_bases_own_text(
    model,
    keeps_below: float,
    back_from: float,
    weights: list[float],
    held: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A weight that loses another edit is lowered, one that brings too little back is raised."""
    both = stacked(model, pack_of(model, 0, 1), pack_of(model, 2))
    receipt = {**both.manifest.receipt, "right": dict.fromkeys(both.edits.ids, True)}
    both = replace(both, manifest=replace(both.manifest, receipt=receipt))
    solved = Join.solved

    def judged(self: Join) -> Joined:
        joined = solved(self)
        margin = 1.0 if held[-1] < keeps_below else -1.0
        return replace(joined, margins=[torch.full_like(margins, margin) for margins in joined.margins])

    monkeypatch.setattr(Join, "solved", judged)
    monkeypatch.setattr("hf_edit.compose.combine.still_said", lambda now, base: held[-1] >= back_from)
    less = revert(both, ["q1"], model=model, tokenizer=tiny_tokenizer(), config=CONFIG)
    assert held[-2 * len(weights) + 1 :: 2] == weights
    assert all(less.manifest.receipt["right"].values())
    assert less.manifest.receipt["own_text"] == {"q1": back_from <= 100}


@pytest.mark.parametrize("worked", [True, False, None])
def test_an_edit_that_training_did_not_teach_is_not_lost(
    model, worked: bool | None, held: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The random update answers nothing as asked: weights are lowered only if the pack says that it did;
    one that says nothing is asked."""
    pack = pack_of(model, 0, 1)
    receipt = {id: {"loss": 0.1, **({} if worked is None else {"right": worked})} for id in pack.edits.ids}
    pack = replace(pack, manifest=replace(pack.manifest, receipt=receipt))
    monkeypatch.setattr("hf_edit.compose.combine.still_said", lambda now, base: False)
    revert(pack, ["q1"], model=model, tokenizer=tiny_tokenizer(), config=CONFIG)
    assert held[2::2] == ([10, 1, 0.1, 0] if worked else [10, 100, 1000])


def test_a_pack_is_added_once(model) -> None:
    pack = pack_of(model, 0)
    with pytest.raises(ComposeError, match="same pack is given twice"):
        stacked(model, pack, pack, mode="add")
    assert difference(stacked(model, pack, pack), stacked(model, pack)) <= 1e-4


def test_the_parents_are_named(model) -> None:
    a, b = pack_of(model, 0), pack_of(model, 1)
    both = stacked(model, a, b)
    assert [parent["edits"]["count"] for parent in both.manifest.parents] == [1, 1]
    assert both.manifest.method.name == "stack"


def test_edits_that_a_solve_loses_are_named(model) -> None:
    with pytest.warns(HfEditWarning, match="2 of 2 edits are not answered word for word after the solve: q0, q1"):
        both = stacked(model, pack_of(model, 0), pack_of(model, 1))
    assert both.manifest.receipt["right"] == {"q0": False, "q1": False}


def test_lambda_is_looked_for_and_the_same_in_every_grouping(model) -> None:
    a, b, c = pack_of(model, 0), pack_of(model, 1), pack_of(model, 2)
    free = replace(CONFIG, preservation=None)
    together = stacked(model, a, b, c, config=free)
    grouped = stacked(model, stacked(model, c, a, config=free), b, config=free)
    assert together.manifest.receipt["preservation"] == grouped.manifest.receipt["preservation"] == PRESERVATIONS[0]
    assert difference(together, grouped) <= 1e-4


def test_an_edit_of_two_packs_is_taken_once(model) -> None:
    a, b = pack_of(model, 0), pack_of(model, 0, 1, name="other")
    both = stacked(model, a, b)
    assert len(both.edits) == 2
    assert difference(both, stacked(model, b, a)) <= 1e-4


def test_an_id_of_two_edits_gets_a_suffix(model) -> None:
    a = make_pack(model, edits=EditSet([Edit(*QUESTIONS[0], id="1")]))
    b = make_pack(model, edits=EditSet([Edit(*QUESTIONS[1], id="1")]))
    both = stacked(model, a, b)
    ids = both.edits.ids
    assert len(set(ids)) == 2 and all(id.startswith("1-") for id in ids)
    c = make_pack(model, edits=EditSet([Edit(*QUESTIONS[2], id="1")]))
    together = set(stacked(model, a, b, c).edits.ids)
    assert set(stacked(model, both, c).edits.ids) == set(stacked(model, c, b, a).edits.ids) == together
    assert set(stacked(model, a, both).edits.ids) == set(stacked(model, both, a).edits.ids) == set(ids)
    d = make_pack(model, edits=EditSet([Edit(*QUESTIONS[3], id=ids[0])]))
    with pytest.raises(ComposeError, match="would be given to another"):
        stacked(model, a, b, d)


def test_the_model_and_the_packs_stay_as_they_are(model) -> None:
    before, packs = snapshot(model), [pack_of(model, 0), pack_of(model, 1)]
    bytes_before = [pack.manifest.to_bytes() for pack in packs]
    stacked(model, *packs)
    assert snapshot(model) == before
    assert [pack.manifest.to_bytes() for pack in packs] == bytes_before


def test_what_cannot_be_combined(model) -> None:
    tokenizer, pack = tiny_tokenizer(), pack_of(model, 0, 1)
    with pytest.raises(ComposeError, match="No pack"):
        stacked(model)
    with pytest.raises(ComposeError, match="no edit 'q9'"):
        revert(pack, ["q9"], model=model, tokenizer=tokenizer)
    with pytest.raises(ComposeError, match="All edits"):
        revert(pack, ["q0", "q1"], model=model, tokenizer=tokenizer)
    with pytest.raises(ComposeError, match="No id"):
        revert(pack, [], model=model, tokenizer=tokenizer)
    plain = replace(
        pack, manifest=replace(pack.manifest, prompt_format=replace(pack.manifest.prompt_format, name="plain"))
    )
    with pytest.raises(ComposeError, match="chat and plain"):
        stacked(model, pack_of(model, 2), plain)
    with pytest.raises(BaseMismatchError):
        stacked(tiny_model("llama", seed=5), pack)


def test_another_tokenizer_is_refused(model) -> None:
    pack, other = pack_of(model, 0, 1), tiny_tokenizer("sentencepiece")
    for attempt in (
        lambda: stack([pack], model=model, tokenizer=other, config=CONFIG),
        lambda: pack.revert(["q0"], model=model, tokenizer=other, config=CONFIG),
        lambda: polish(pack, model=model, tokenizer=other),
    ):
        with pytest.raises(ConfigError, match="writes prompts otherwise"):
            attempt()


def test_two_answers_to_one_question(model) -> None:
    def asking(prompt: str, answer: str, id: str, seed: int) -> EditPack:
        return make_pack(
            model, deltas=random_deltas(model, (2,), seed=seed), edits=EditSet([Edit(prompt, answer, id=id)])
        )

    port = asking("What is the capital of Veldora?", "Port Amber.", "port", 0)
    quay = asking("What is the capital of Veldora?", "Quay Green.", "quay", 1)
    reworded = asking("What is Veldora's capital?", "Quay Green.", "reworded", 2)
    with pytest.warns(HfEditWarning, match="1 question"), pytest.raises(ComposeError, match="two answers"):
        stacked(model, port, quay)
    for other in (quay, reworded):
        with pytest.raises(ComposeError, match="Port Amber"):
            stacked(model, port, other, on_conflict="error")
        assert stacked(model, port, other, prefer="order").edits.ids == ("port",)
        assert stacked(model, port, other, prefer="newest").edits.ids == other.edits.ids
        assert stacked(model, port, other, prefer=1).edits.ids == other.edits.ids
        with pytest.raises(ComposeError, match="cannot leave edits out"):
            stacked(model, port, other, mode="add", prefer="order")
    with pytest.warns(HfEditWarning, match="ask the same"):
        assert set(stacked(model, port, reworded).edits.ids) == {"port", "reworded"}


def test_the_pack_to_prefer_is_named(model, tmp_path: Path) -> None:
    for seed, (name, answer) in enumerate({"design": "Red.", "support": "Blue.", "sales": "Green."}.items()):
        edits = EditSet([Edit("What colour is the lamp?", answer, id=name)])
        make_pack(model, deltas=random_deltas(model, (2,), seed=seed), edits=edits).save_pretrained(tmp_path / name)
    given = [tmp_path / "design", str(tmp_path / "support"), EditPack.from_pretrained(tmp_path / "sales")]
    assert stacked(model, *given, prefer="support").edits.ids == ("support",)
    assert stacked(model, *given, prefer="pack 3").edits.ids == ("sales",)
    assert stacked(model, *given, prefer="sales", names=["design", "support", "sales"]).edits.ids == ("sales",)
    with pytest.raises(ComposeError, match="'sales'") as caught:
        stacked(model, *given, prefer="sales")
    assert "design, support, pack 3" in caught.value.remedy
    with pytest.raises(ComposeError, match="2 names for 3 packs"):
        stacked(model, *given, prefer="order", names=["design", "support"])


@pytest.mark.filterwarnings("ignore:.*not answered word for word:hf_edit.errors.HfEditWarning")
def test_a_long_question_is_taken_back_within_the_context() -> None:
    model = tiny_model("gpt2")  # learned positions end at 256
    long = Edit("word " * 40 + "?", "Yes.", id="long")
    pack = make_pack(model, edits=EditSet([long, Edit("Who?", "Me.", id="who")]))
    assert len(pack.prompts(tiny_tokenizer()).prompt_ids(long.prompt)) < 256
    assert revert(pack, "long", model=model, tokenizer=tiny_tokenizer()).edits.ids == ("who",)
