"""What the family does from end to end on tiny models; the numbers are held by test_against_reference."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hf_edit
from hf_edit.edits import Edit, EditSet
from hf_edit.errors import ComputationError, ConfigError, HfEditWarning
from hf_edit.methods import METHODS
from hf_edit.methods.base import EditResult
from hf_edit.methods.checkpoints import NoCheckpoints
from hf_edit.methods.contexts import behind, invent_prefixes
from hf_edit.methods.msbp.config import EMSEditConfig, MendConfig, MultiStepConfig, UltraEditConfig
from hf_edit.methods.msbp.method import EMSEdit, Mend
from hf_edit.methods.msbp.network import HyperNetwork
from hf_edit.methods.msbp.proposal import Normaliser
from hf_edit.methods.msbp.stream import Transformer
from hf_edit.methods.training.texts import inputs_along, prepared
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.packs.pack import EditPack
from hf_edit.progress import Silent
from hf_edit.prompting import Encoded, PromptFormat
from tests.editing import contents
from tests.methods.preserving import Fixed
from tests.methods.training.moments import random_moments
from tests.packs.make import logits
from tests.snapshots import changed, snapshot
from tests.tiny import tiny_model, tiny_tokenizer


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*not answered as asked:hf_edit.errors.HfEditWarning"),
    # PEFT asks transformers for the name that transformers has deprecated
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]

FAMILY = ("mend", "malmen", "rledit", "ultraedit", "emsedit")
CHAT = PromptFormat.of("chat", tiny_tokenizer())
EDITS = EditSet(
    [
        Edit("What is the capital?", "Paris is the capital.", id="capital"),
        Edit("Who?", "a", id="who"),
        Edit("Tell me about Mount Fuji", "The fox lives there.", id="fuji"),
        Edit("Who wrote it?", "Nobody did.", id="wrote"),
    ]
)


def computed(
    method: Any, edits: EditSet = EDITS, *, alike: tuple[Encoded, ...] = (), earlier: tuple[Encoded, ...] = ()
) -> EditResult:
    view = EditableModel.of(tiny_model())
    preserve = Fixed(random_moments(view, ("text",)), alike=alike, earlier=earlier)
    with borrowed(view.model):
        return method.compute(view, CHAT, edits, preserve, NoCheckpoints(), Silent())


def mean_loss(figures: Mapping[str, Any]) -> float:
    return sum(each["loss"] for each in figures.values()) / len(figures)


@pytest.mark.parametrize("method", FAMILY)
def test_two_calibrated_steps_lower_the_loss_more_than_one(method: str) -> None:
    entry = METHODS[method]
    losses = []
    for steps in (1, 2):
        result = computed(entry.method_class(entry.config_class(preservation=0, steps=steps)))
        assert all(len(figures["step_sizes"]) == steps for figures in result.receipt.values())
        losses.append(mean_loss(result.receipt))
    with warnings.catch_warnings():
        untouched = computed(entry.method_class(entry.config_class(preservation=0, steps=1, step_size=1e-12)))
    assert losses[1] < losses[0] < mean_loss(untouched.receipt)


@pytest.mark.parametrize("method", FAMILY)
def test_a_pack_opens_anywhere_and_the_base_is_left_alone(method: str, tmp_path: Path) -> None:
    model = tiny_model()
    before = snapshot(model)
    pack = hf_edit.edit(model, tiny_tokenizer(), EDITS, METHODS[method].config_class(preservation=0))
    assert changed(before, snapshot(model)) == []
    assert pack.manifest.method.name == method
    pack.save_pretrained(tmp_path / "pack")
    base = logits(model)
    with EditableModel.of(model).updated(pack.deltas):
        expected = logits(model)
    assert (expected - base).abs().max() > 1e-2
    model.load_adapter(str(tmp_path / "pack"))
    assert (logits(model) - expected).abs().max() <= 5e-5


def test_the_same_edits_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        pack = hf_edit.edit(tiny_model(), tiny_tokenizer(), EDITS, EMSEditConfig(preservation=0, batch=3))
        pack.save_pretrained(tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_pack_is_read_again_with_its_source(tmp_path: Path) -> None:
    pack = hf_edit.edit(tiny_model(), tiny_tokenizer(), EDITS, UltraEditConfig(preservation=0))
    pack.save_pretrained(tmp_path / "pack")
    again = EditPack.from_pretrained(tmp_path / "pack")
    assert pack.source is not None and again.source is not None
    for edit, said, read in zip(EDITS, pack.source, again.source, strict=True):
        encoded = CHAT.encode(edit.prompt, edit.target)
        assert set(said) == set(read) == set(pack.deltas)
        for name, kv in said.items():
            # one value for each token of the answer, at the place before it
            assert kv.positions.tolist() == list(range(encoded.answer_start - 1, len(encoded) - 1))
            assert kv.positions.dtype == torch.int64 and kv.values.dtype == torch.float32
            assert kv.values.shape == (len(encoded.answer_ids), 32)
            assert torch.equal(read[name].values, kv.values) and torch.equal(read[name].positions, kv.positions)


def test_the_order_of_the_edits_does_not_matter_within_a_batch() -> None:
    config = EMSEditConfig(preservation=0, step_size=0.02)
    forth, back = computed(EMSEdit(config)), computed(EMSEdit(config), EDITS[::-1])
    assert list(forth.receipt) == [edit.id for edit in EDITS] == list(back.receipt)[::-1]
    for name, delta in forth.deltas.items():
        torch.testing.assert_close(back.deltas[name].dense(), delta.dense(), rtol=1e-3, atol=1e-4)
    assert forth.source is not None and back.source is not None
    for said, other in zip(forth.source, back.source[::-1], strict=True):
        for name, kv in said.items():
            torch.testing.assert_close(other[name].values, kv.values, rtol=1e-3, atol=1e-4)


def test_prompts_are_taught_behind_other_text_too() -> None:
    """Each edit counts once more with every text; only its own tokens are its source."""
    view = EditableModel.of(tiny_model())
    with borrowed(view.model):
        some = invent_prefixes(view, CHAT, 32, 10, 0)
        texts = [Edit(behind(some[i], edit.prompt), edit.target) for i, edit in enumerate(EDITS)]
    values: dict[str, Any] = {"preservation": 0, "steps": 2, "step_size": 0.02}
    beside = computed(EMSEdit(EMSEditConfig(**values, contexts=1)))
    listed = computed(EMSEdit(EMSEditConfig(**values)), EditSet([*EDITS, *texts]))
    alone = computed(EMSEdit(EMSEditConfig(**values)))
    assert list(beside.receipt) == [edit.id for edit in EDITS]
    for name, delta in beside.deltas.items():
        torch.testing.assert_close(delta.dense(), listed.deltas[name].dense(), rtol=1e-3, atol=1e-4)
        assert (delta.dense() - alone.deltas[name].dense()).norm() > 0.1 * delta.norm()
    assert beside.source is not None and listed.source is not None
    for said, expected in zip(beside.source, listed.source, strict=False):
        for name, kv in said.items():
            assert torch.equal(kv.positions, expected[name].positions)
            torch.testing.assert_close(kv.values, expected[name].values, rtol=1e-3, atol=1e-4)


def test_text_that_does_not_fit_in_front_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = max(len(CHAT.encode(edit.prompt, edit.target)) for edit in EDITS)
    monkeypatch.setattr(EditableModel, "max_length", longest)
    values: dict[str, Any] = {"preservation": 0, "steps": 1, "step_size": 0.02}
    method = EMSEdit(EMSEditConfig(**values, contexts=2))
    view = EditableModel.of(tiny_model())
    with borrowed(view.model):
        beside = method._in_contexts(view, CHAT, EDITS, method.linears(view)[0].layer)
    lengths = [len(text.ids) for texts in beside for text in texts]
    assert len(beside) == len(EDITS) and 0 < len(lengths) < 2 * len(EDITS) and max(lengths) <= longest


def test_batches_are_learned_one_after_the_other_in_order() -> None:
    """What a batch takes does not depend on those after it."""
    whole = computed(EMSEdit(EMSEditConfig(preservation=0, batch=2)))
    first = computed(EMSEdit(EMSEditConfig(preservation=0, batch=2)), EDITS[:2])
    sizes = [figures["step_sizes"] for figures in whole.receipt.values()]
    assert sizes[0] == sizes[1] == pytest.approx(first.receipt["capital"]["step_sizes"], rel=1e-3)
    assert sizes[2] == sizes[3] != sizes[0]
    rank = sum(len(CHAT.encode(edit.prompt, edit.target).answer_ids) for edit in EDITS)
    assert all(delta.rank == min(2 * rank, 32) for delta in whole.deltas.values())


def moved(result: EditResult, text: Encoded) -> float:
    """How far the update moves the outputs of the lowest edited linear where the text's answer is predicted."""
    view = EditableModel.of(tiny_model())
    name, delta = next(iter(result.deltas.items()))
    (linear,) = view.linears_named([name])
    ((_, inputs),) = inputs_along(view, [linear], prepared(view, [text], linear.layer), linear.layer)
    return float(delta.outputs(inputs[name][text.answer_start - 1 :]).norm())


STRANGER = CHAT.encode("What is the capitol?", "Over the lazy dog.")


@pytest.mark.parametrize("kept", ["earlier", "strangers", "batch"])
def test_what_is_protected_moves_less_and_the_edits_are_learned_still(kept: str) -> None:
    found = []
    for weight in (0.0, 100.0):
        values: dict[str, Any] = {"step_size": 0.02, "steps": 1, "layers": (2,), "preservation": 0}
        edits, text = EDITS, STRANGER
        if kept == "earlier":
            result = computed(EMSEdit(EMSEditConfig(**values, protect_earlier=weight)), edits, earlier=(text,))
        elif kept == "strangers":
            config = EMSEditConfig(**values, strangers=1, stranger_weight=weight)
            result = computed(EMSEdit(config), edits, alike=(text,))
        else:
            text = CHAT.encode(EDITS[0].prompt, EDITS[0].target)
            whole = computed(EMSEdit(EMSEditConfig(**values, batch=2, protect_earlier=weight)), edits)
            first = computed(EMSEdit(EMSEditConfig(**values)), edits[:2])
            rest = {name: delta.minus(first.deltas[name]) for name, delta in whole.deltas.items()}
            result = EditResult(rest, None, {})
        asked = CHAT.encode(EDITS[2].prompt, EDITS[2].target)
        found.append((moved(result, text), moved(result, asked)))
    (free, learned), (held, still) = found
    assert held < 0.2 * free and still > 0.3 * learned


def test_what_an_earlier_pack_said_to_a_question_taught_anew_is_not_held() -> None:
    """The update would be held to nothing at the very tokens that it is to change; other questions' are held still."""
    config = EMSEditConfig(step_size=0.02, steps=1, layers=(2,), preservation=0, protect_earlier=100.0)
    capital = CHAT.encode(EDITS[0].prompt, "It is a dog.")
    anew, other, none = (computed(EMSEdit(config), earlier=texts) for texts in ((capital,), (STRANGER,), ()))
    for name, delta in none.deltas.items():
        assert torch.equal(anew.deltas[name].dense(), delta.dense())
        assert not torch.allclose(other.deltas[name].dense(), delta.dense(), rtol=0.01)


class Unasked(Fixed):
    """Nothing may be collected but what is given."""

    def moments(self, linears: Any) -> Any:
        raise AssertionError("moments are collected")

    def strangers(self, edits: Any, count: int) -> Any:
        raise AssertionError("strangers are asked")


def test_mend_keeps_nothing_and_says_so() -> None:
    """And computes nothing for what it does not keep; the moments it asks for only to cut its update to a rank."""
    view, found = EditableModel.of(tiny_model()), []
    statistics = random_moments(view, ("text",))
    for values, kept in (
        ({}, Unasked(statistics, earlier=(STRANGER,))),
        ({"protect_earlier": 0.0}, Unasked(statistics, earlier=(STRANGER,))),
        ({"rank": 3}, Fixed(statistics)),
    ):
        config = MendConfig(steps=1, step_size=0.002, batch=2, **values)  # type: ignore[arg-type]
        with borrowed(view.model), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found.append(Mend(config).compute(view, CHAT, EDITS, kept, NoCheckpoints(), Silent()))
        said = [str(one.message) for one in caught if "taught earlier: mend has no solve" in str(one.message)]
        assert len(said) == (1 if "protect_earlier" not in values and kept.earlier else 0)
    for name, delta in found[0].deltas.items():
        assert torch.equal(delta.dense(), found[1].deltas[name].dense()) and found[2].deltas[name].rank == 3


@pytest.mark.parametrize(
    "values",
    [
        {"ridge": 2.0},
        {"protect_earlier": 3.0},
        {"strangers": 2},
        {"stranger_weight": 2.0},
        {"preservation": 5.0},
        {"moments": {"prompt_weight": 9.0}},
    ],
)
def test_settings_that_do_nothing_for_mend(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(ConfigError, match=f"{name} .*not go with mend"):
        MendConfig.from_mapping(values)
    cut = {**values, "rank": 4}
    if name in ("preservation", "moments"):  # the metric in which it is cut
        MendConfig.from_mapping(cut)
    else:
        with pytest.raises(ConfigError, match=f"{name} .*not go with mend"):
            MendConfig.from_mapping(cut)
    assert MendConfig.from_mapping(MendConfig().to_json()) == MendConfig()


def test_earlier_packs_are_protected_through_the_front_door() -> None:
    """What the model says to the edits of a pack attached to it changes less."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    first = hf_edit.edit(model, tokenizer, EDITS[:1], EMSEditConfig(preservation=0, step_size=0.02))
    hf_edit.attach(model, first, name="first")
    encoded = CHAT.encode(EDITS[0].prompt, EDITS[0].target)
    ids, predicting = torch.tensor([encoded.ids]), slice(encoded.answer_start - 1, -1)
    view, changes = EditableModel.of(model), []
    with torch.no_grad():
        before = view.logits(ids)[0, predicting]
        for earlier in ((), (first,)):
            config = EMSEditConfig(preservation=0, step_size=0.02, steps=1, layers=(3,), protect_earlier=100.0)
            second = hf_edit.edit(model, tokenizer, EDITS[1:], config, earlier=earlier)
            with view.updated(second.deltas):
                changes.append(float((view.logits(ids)[0, predicting] - before).norm()))
    assert changes[1] < 0.3 * changes[0]


def test_the_edits_that_were_missed_are_named() -> None:
    """In the warning, and one by one in the receipt; their losses are those of the edited model."""
    config = EMSEditConfig(preservation=0, step_size=1e-6, steps=2)
    with pytest.warns(HfEditWarning, match=r"4 of 4 edits are not answered as asked .*: capital, who, fuji, wrote\."):
        pack = hf_edit.edit(tiny_model(), tiny_tokenizer(), EDITS, config)
    for edit in EDITS:
        figures = pack.manifest.receipt[edit.id]
        assert figures["right"] is False and figures["loss"] > 1 and figures["step_sizes"] == [1e-6, 1e-6]


class Backwards(HyperNetwork):
    """Points to where the loss grows."""

    def forward(self, rows: Tensor, module: int) -> tuple[Tensor, Tensor]:
        keys, gradients = super().forward(rows, module)
        return keys, -gradients


class Misled(EMSEdit):
    """Its second step goes the wrong way, or both do."""

    both = False

    def transformers(self, model: EditableModel, prompts: PromptFormat) -> list[Transformer]:
        linears = self.linears(model)
        wrong = {(32, 56): Backwards(56, 32, len(linears), 2, 1, 1.0, torch.Generator().manual_seed(0))}
        right, misled = (Transformer(Normaliser.empty(linears), networks) for networks in (None, wrong))
        return [misled if self.both else right, misled]


def test_a_step_that_raises_the_loss_is_refused() -> None:
    """And leaves the step before it as it was."""
    one = computed(EMSEdit(EMSEditConfig(preservation=0, steps=1, step_size=0.01)))

    class Second(Misled):
        def step(self, stream: Any, number: int, batch: Any, probe: Any) -> Any:
            self.config = EMSEditConfig(preservation=0, steps=2, step_size=0.01 if number == 0 else None)
            return super().step(stream, number, batch, probe)

    two = computed(Second(EMSEditConfig(preservation=0, steps=2)))
    assert all(figures["step_sizes"] == [0.01, 0.0] for figures in two.receipt.values())
    for name, delta in one.deltas.items():
        torch.testing.assert_close(two.deltas[name].dense(), delta.dense())
    assert one.source is not None and two.source is not None
    for said, other in zip(one.source, two.source, strict=True):
        for name, kv in said.items():
            torch.testing.assert_close(other[name].values, kv.values)


def test_where_no_step_lowers_the_loss_there_is_no_pack() -> None:
    class Both(Misled):
        both = True

    with pytest.raises(ComputationError, match="None of the 2 steps of any batch lowered"):
        computed(Both(EMSEditConfig(preservation=0, steps=2)))


def test_three_steps_are_not_worse_than_two() -> None:
    losses = [mean_loss(computed(EMSEdit(EMSEditConfig(preservation=0, steps=steps))).receipt) for steps in (2, 3, 4)]
    assert losses[1] <= losses[0] + 1e-6 and losses[2] <= losses[1] + 1e-6


@pytest.mark.parametrize("method", FAMILY)
def test_default_layers_and_those_that_are_not_there(method: str) -> None:
    view, entry = EditableModel.of(tiny_model()), METHODS[method]
    linears = entry.method_class(entry.config_class(preservation=0)).linears(view)
    assert [linear.name for linear in linears] == [f"model.layers.{layer}.mlp.down_proj" for layer in (2, 3)]
    with pytest.raises(ConfigError, match="Layer 9 does not exist"):
        entry.method_class(entry.config_class(preservation=0, layers=(1, 9))).linears(view)
    for depth in range(1, 40):
        layers = MultiStepConfig().layers_of(depth)
        assert layers and 0 <= layers[0] and layers[-1] < depth


def test_a_rank_that_is_asked_for_is_kept_and_its_cost_told() -> None:
    whole = computed(EMSEdit(EMSEditConfig(preservation=0, steps=2)))
    assert all("truncation_error" not in figures for figures in whole.receipt.values())
    for preservation in (0.0, 5.0):
        cut = computed(EMSEdit(EMSEditConfig(preservation=preservation, steps=2, rank=3)))
        assert all(delta.rank == 3 for delta in cut.deltas.values())
        (error,) = {figures["truncation_error"] for figures in cut.receipt.values()}
        assert 0 < error < 1
    enough = computed(EMSEdit(EMSEditConfig(preservation=0, steps=2, rank=32)))
    assert {figures["truncation_error"] for figures in enough.receipt.values()} == {0.0}
    for name, delta in whole.deltas.items():
        torch.testing.assert_close(enough.deltas[name].dense(), delta.dense(), rtol=1e-4, atol=1e-5)
