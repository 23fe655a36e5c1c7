"""What the settings of AnyEdit choose between, on tiny models; the numbers are held by test_against_reference."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import hf_edit
from hf_edit.edits import Edit, EditSet
from hf_edit.errors import ConfigError, HfEditWarning
from hf_edit.methods import METHODS, method_for
from hf_edit.methods.anyedit.chunking import answer_surprisals
from hf_edit.methods.anyedit.config import OF_TARGETS, AnyEditConfig, UnKEConfig
from hf_edit.methods.anyedit.method import AnyEdit, UnKE
from hf_edit.methods.anyedit.unke_config import UnKESettings
from hf_edit.methods.base import Checkpoints, EditResult
from hf_edit.methods.beginnings import beginnings
from hf_edit.methods.checkpoints import FolderCheckpoints, NoCheckpoints
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.solvers.support import touched_columns
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.moments import SecondMoments
from tests.methods.preserving import Fixed
from tests.snapshots import changed, snapshot
from tests.tiny import tiny_model, tiny_tokenizer


# a few steps on a random model leave every loss high, and it invents no questions
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(loss stayed above|invented no question):hf_edit.errors.HfEditWarning"
)

EDITS = EditSet([Edit(prompt="What is it?", target="It is a fox. It jumps."), Edit(prompt="Who?", target="Nobody.")])
PROMPTS = PromptFormat.of("chat", tiny_tokenizer())
EARLIER = [PROMPTS.encode("Where is Paris?", "In France, on the Seine.")]


def compute(
    config: AnyEditConfig, checkpoints: Checkpoints | None = None, **preserve: object
) -> tuple[EditableModel, EditResult]:
    view = EditableModel.of(tiny_model())
    generator = torch.Generator().manual_seed(0)
    moments: dict[str, dict[str, Tensor]] = {part: {} for part in ("text", "prompt", "answer")}
    for linear in view.linears:
        for part in moments.values():
            Z = torch.randn(200, linear.d_in, generator=generator)
            part[linear.name] = Z.T @ Z / len(Z)
    fixed = Fixed(SecondMoments(moments, dict.fromkeys(moments, 200), "random"), **preserve)  # type: ignore[arg-type]
    with borrowed(view.model):
        result = method_for(config).compute(view, PROMPTS, EDITS, fixed, checkpoints or NoCheckpoints(), Silent())
    return view, result


def moved_at(view: EditableModel, result: EditResult, text: Encoded) -> float:
    """How far the update moves the last edited linear's output over a text's tokens."""
    (name,) = result.deltas
    linear = next(linear for linear in view.linears if linear.name == name)
    keys = view.trace(view.ids([text.ids])[0], inputs=[linear]).inputs[name][0]
    return float((keys @ result.deltas[name].dense().T).norm())


@pytest.mark.parametrize("solve", [{"preservation": 0.1}, {"backend": "alphaedit", "null_share": 0.9}])
def test_earlier_edits_are_protected(solve: dict[str, object]) -> None:
    config = AnyEditConfig.from_mapping({"window": 6, "max_evaluations": 3, **solve})
    left = [
        moved_at(*compute(AnyEditConfig(**{**vars(config), "earlier_weight": weight}), earlier=EARLIER), EARLIER[0])
        for weight in (0.0, 1.0, 100.0)
    ]
    assert left[0] == moved_at(*compute(config), EARLIER[0])  # no weight is as good as none taught
    assert left[0] > 2 * left[1] > 4 * left[2]


def test_backends_differ_in_the_solve_alone() -> None:
    memit, alphaedit = (
        compute(AnyEditConfig(backend=backend, window=6, max_evaluations=3))[1] for backend in ("memit", "alphaedit")
    )
    assert memit.receipt == alphaedit.receipt
    (name,) = memit.deltas
    assert not torch.allclose(memit.deltas[name].dense(), alphaedit.deltas[name].dense(), rtol=0.1)


@pytest.mark.parametrize(
    "other",
    [{"backend": "alphaedit"}, {"preservation": 3.0}, {"backend": "unke", "unke": {"steps": 2, "rank": 2}}],
)
def test_targets_are_found_once_for_all_that_is_made_of_them(
    other: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found for one solve serves another one, with the result of finding it anew."""
    first = AnyEditConfig(window=4, max_evaluations=3)
    second = first.from_mapping(first.to_json() | other)
    talks = [PROMPTS.encode("How are you?", "Well.")]
    anew = compute(second, asked=talks)[1]
    kept = FolderCheckpoints(tmp_path, "")
    compute(first, kept, asked=talks)
    monkeypatch.setattr("hf_edit.methods.anyedit.method.optimise_targets", None)
    again = compute(second, kept, asked=talks)[1]
    assert {name: delta.dense().tolist() for name, delta in again.deltas.items()} == {
        name: delta.dense().tolist() for name, delta in anew.deltas.items()
    }


def test_what_targets_depend_on_is_told_for_every_setting() -> None:
    """A setting must be one that targets depend on, or one of those that only say what is made of them."""
    after = {"backend", "preservation", "prompt_weight", "answer_weight", "null_share", "beta", "own_weight"}
    after |= {"earlier_weight", "columns", "column_bytes", "ridge", "unke", "direct", "together", "join", "polish"}
    after |= {"statistics"}
    elsewhere = {"format", "layers", "experts", "seed", "at_once"}  # in the texts, the map's name, or of no effect
    clamps = {"first_clamp", "overshoot"}
    assert {f.name for f in fields(AnyEditConfig)} == {*OF_TARGETS, *clamps, *after, *elsewhere}
    asked = AnyEditConfig().target_settings(1)
    assert asked == AnyEditConfig(overshoot=True).target_settings(8) != AnyEditConfig().target_settings(8)


@pytest.mark.parametrize(
    ("settings", "chunks"),
    [
        ({"chunker": "none"}, [1, 1]),
        ({"chunker": "sentence", "min_chunk": 2}, [2, 1]),
        ({"chunker": "window", "window": 1000}, [1, 1]),
    ],
)
def test_chunkers_cut_as_they_are_named(settings: dict[str, object], chunks: list[int]) -> None:
    config = AnyEditConfig.from_mapping({"max_evaluations": 1, **settings})
    result = compute(config)[1]
    assert [result.receipt[edit.id]["chunks"] for edit in EDITS] == chunks


def test_without_chunks_each_edit_has_its_own_last_prompt_token_as_key() -> None:
    result = compute(AnyEditConfig(chunker="none", max_evaluations=1))[1]
    for edit, asked in zip(EDITS, result.source, strict=True):
        ((_, values),) = asked.items()
        assert values.positions.tolist() == [len(PROMPTS.prompt_ids(edit.prompt)) - 1]


def test_surprisal_is_of_each_answer_token() -> None:
    model = tiny_model()
    encoded = PROMPTS.encode("Who?", "A fox.")
    with torch.no_grad():
        p = model(torch.tensor([encoded.ids])).logits[0].softmax(dim=-1)
    expected = [-float(p[i - 1, encoded.ids[i]].log()) for i in range(encoded.answer_start, len(encoded))]
    assert answer_surprisals(EditableModel.of(model), encoded) == pytest.approx(expected, rel=1e-4)


def test_the_nested_objective_looks_further() -> None:
    """Before the last chunk it asks for other targets."""
    settings = {"window": 6, "max_evaluations": 4}
    sources = [compute(AnyEditConfig(objective=o, **settings))[1].source[0] for o in ("chunk", "nested")]
    one, other = (next(iter(asked.values())) for asked in sources)
    assert one.positions.tolist() == other.positions.tolist() and len(one.positions) > 1
    assert not torch.allclose(one.values[0], other.values[0], rtol=1e-2)


# ---- UnKE ------------------------------------------------------------------------------------------------------

UNKE = UnKESettings(steps=4, rank=3)


def test_unke_is_anyedits_backend_without_chunks() -> None:
    config = UnKEConfig(max_evaluations=3, unke=UNKE)
    assert (config.backend, config.chunker) == ("unke", "none")
    method = method_for(config)
    assert type(method) is UnKE and method.name == "unke" and "unke" in METHODS
    assert type(method_for(AnyEditConfig())) is AnyEdit
    view, result = compute(config, asked=EARLIER)
    assert method.linears(view) == []  # it needs no second moments
    assert set(result.deltas) == {linear.name for linear in view.block_linears(2)}
    same = compute(AnyEditConfig(backend="unke", chunker="none", max_evaluations=3, unke=UNKE), asked=EARLIER)[1]
    for name, delta in result.deltas.items():
        assert delta.rank == 3
        assert torch.equal(delta.dense(), same.deltas[name].dense())
    for figures in result.receipt.values():
        assert figures["chunks"] == 1 and figures["block"]["steps"] == 4


def test_unke_keeps_the_texts_of_earlier_edits() -> None:
    config = UnKEConfig(max_evaluations=3, unke=UnKESettings(steps=30, rank=3, preserved_weight=50.0))
    moved = []
    for earlier in ([], EARLIER):
        view, result = compute(config, earlier=earlier)
        ids, _ = view.ids([EARLIER[0].ids])
        before = view.trace(ids, leaving=[2]).leaving[2]
        with view.updated(result.deltas):
            moved.append(float((view.trace(ids, leaving=[2]).leaving[2] - before).norm()))
    assert moved[1] < 0.7 * moved[0]


def test_unke_leaves_earlier_edits_out_at_weight_0() -> None:
    config = UnKEConfig(max_evaluations=3, unke=UNKE, earlier_weight=0.0)
    (_, given), (_, without), (_, held) = (
        compute(config, earlier=EARLIER),
        compute(config),
        compute(replace(config, earlier_weight=1.0), earlier=EARLIER),
    )
    for name, delta in given.deltas.items():
        assert torch.equal(delta.dense(), without.deltas[name].dense())
        assert not torch.equal(delta.dense(), held.deltas[name].dense())


def test_unke_asks_for_no_texts_that_it_does_not_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fixed, "conversations", None)
    config = UnKEConfig(max_evaluations=3, unke=replace(UNKE, preserved_weight=0.0))
    with pytest.warns(HfEditWarning, match="answers of 1 edits taught earlier: unke.preserved_weight is 0"):
        given = compute(config, earlier=EARLIER)[1]
    without = compute(replace(config, earlier_weight=0.0), earlier=EARLIER)[1]
    assert all(torch.equal(delta.dense(), without.deltas[name].dense()) for name, delta in given.deltas.items())


def test_a_pack_of_unke_loads_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_EDIT_CACHE", str(tmp_path / "cache"))
    model = tiny_model()
    config = UnKEConfig(max_evaluations=3, unke=UNKE, statistics=StatisticsConfig(conversations=2, answer_tokens=3))
    before = snapshot(model)
    pack = hf_edit.edit(model, tiny_tokenizer(), EDITS, config)  # type: ignore[arg-type]
    assert changed(before, snapshot(model)) == []
    assert pack.manifest.method.name == "unke"
    assert UnKEConfig.from_mapping(pack.manifest.method.config) == config
    pack.save_pretrained(tmp_path / "pack")
    ids = torch.tensor([EARLIER[0].ids])
    with torch.no_grad():
        base = model(ids).logits
        with EditableModel.of(model).updated(pack.deltas):
            expected = model(ids).logits
        model.load_adapter(str(tmp_path / "pack"))
        loaded = model(ids).logits
    assert (expected - base).abs().max() > 1e-2
    assert (loaded - expected).abs().max() < 1e-4


# ---- settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"overlap": 2, "chunker": "sentence"}, "overlap = 2 does not go with chunker = sentence"),
        ({"chunker": "sentence", "window": 5, "min_chunk": 6}, "min_chunk = 6 is above window = 5"),
        ({"nested_chunks": 2}, "nested_chunks = 2 does not go with objective = chunk"),
        ({"backend": "unke", "layers": [1, 2]}, r"layers = \[1, 2\] are 2, and unke trains one"),
        ({"chunker": "magic"}, "chunker = 'magic' is none of window"),
        ({"null_share": 0.0}, "null_share = 0.0 is not above 0"),
        ({"null_share": 1.5}, "null_share = 1.5 is above 1"),
        ({"earlier_weight": -1}, "earlier_weight = -1.0 is below 0"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AnyEditConfig.from_mapping(values)


@pytest.mark.parametrize("config", [AnyEditConfig(), AnyEditConfig(backend="alphaedit", null_share=0.2), UnKEConfig()])
def test_what_a_manifest_says_is_read_again(config: AnyEditConfig) -> None:
    """With settings that the backend has no use for, at their defaults."""
    assert type(config).from_mapping(config.to_json()) == config


def test_a_small_window_needs_no_word_about_sentences() -> None:
    assert AnyEditConfig(window=1).min_chunk > 1


def test_a_text_that_begins_like_an_edit_is_not_held_to_its_keys() -> None:
    """As an earlier answer to the same question, or a conversation that goes on behind it, does."""
    assert beginnings([1, 2, 3])[:2] == beginnings([1, 2, 4])[:2]
    assert beginnings([1, 2, 3])[2] != beginnings([1, 3, 2])[2] and beginnings([5, 2])[1] != beginnings([1, 2])[1]


# ---- few columns -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning")
@pytest.mark.parametrize("backend", ["memit", "direct"])
def test_a_budget_of_columns(backend: str, tmp_path: Path) -> None:
    """From settings to the layout sparse, which is plain LoRA's update to the bit."""
    quick = {"direct": {"training": {"max_steps": 2}}} if backend == "direct" else {"max_evaluations": 2}
    statistics = {"tokens": 256, "conversations": 4, "answer_tokens": 4, "length": 64, "batch": 4}
    config = AnyEditConfig.from_mapping(
        {"backend": backend, "layers": [1, 2], "columns": 9, "statistics": statistics, **quick}
    )
    pack = hf_edit.edit(tiny_model(), tiny_tokenizer(), EDITS, config)
    assert {len(touched_columns(delta)[0]) for delta in pack.deltas.values()} == {9}
    for layout in ("sparse", "portable"):
        pack.save_pretrained(tmp_path / layout, layout=layout)
    sparse, portable = (hf_edit.EditPack.from_pretrained(tmp_path / one) for one in ("sparse", "portable"))
    for name, delta in pack.deltas.items():
        assert torch.equal(sparse.deltas[name].dense(), delta.dense())
        assert torch.equal(portable.deltas[name].dense(), delta.dense())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"backend": "alphaedit", "columns": 4}, "does not go with backend = alphaedit"),
        ({"backend": "unke", "column_bytes": 4000}, "does not go with backend = unke"),
        ({"backend": "direct", "columns": 4, "together": 1}, "does not go with together = 1"),
        (
            {"backend": "direct", "polish": True},
            "setting polish does not go with edits that are all optimised together",
        ),
        ({"backend": "direct", "columns": 4, "direct": {"columns": 5}}, "another one under direct"),
        ({"backend": "memit", "direct": {"columns": 5}}, "direct do not go with backend = memit"),
        ({"backend": "memit", "together": 4}, "together = 4 does not go with backend = memit"),
        ({"backend": "unke", "polish": True}, "polish = True does not go with backend = unke"),
        ({"backend": "unke", "own_weight": 0.0}, "own_weight = 0.0 does not go .* use backend = memit or alphaedit"),
        ({"backend": "unke", "preservation": 3}, "preservation = 3.0 does not go with backend = unke"),
        ({"backend": "unke", "answer_weight": 3}, "answer_weight = 3.0 does not go with backend = unke"),
        ({"backend": "unke", "prompt_weight": 3}, "prompt_weight = 3.0 does not go with backend = unke"),
        ({"backend": "unke", "null_share": 0.5}, "null_share = 0.5 does not go with backend = unke"),
        ({"backend": "unke", "ridge": 0}, "ridge = 0.0 does not go with backend = unke"),
        ({"null_share": 0.5}, "null_share = 0.5 does not go with backend = memit.* use backend = alphaedit"),
        ({"beta": 2}, "beta = 2.0 does not go with backend = memit"),
        ({"backend": "alphaedit", "preservation": 3}, "preservation = 3.0 does not go with backend = alphaedit"),
        ({"backend": "alphaedit", "ridge": 0}, "ridge = 0.0 does not go with backend = alphaedit"),
        ({"min_chunk": 3}, "min_chunk = 3 does not go with chunker = window"),
        ({"backend": "direct", "join": {"rank": 4}}, "setting join does not go with edits that are all optimised"),
        ({"backend": "direct", "layers": [1], "direct": {"layers": [2]}}, "layers, and others under direct"),
    ],
)
def test_settings_that_make_no_sense_together(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AnyEditConfig.from_mapping(values)
