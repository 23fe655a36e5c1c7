"""From `edit()` and `polish()` to packs on disk, on tiny models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_edit
from hf_edit import AnyEditConfig, EditPack
from hf_edit.compose.config import CombineConfig
from hf_edit.edits import Edit, EditSet
from hf_edit.errors import BaseMismatchError, HfEditWarning
from hf_edit.methods.anyedit.config import UnKEConfig
from hf_edit.methods.anyedit.unke_config import UnKESettings
from hf_edit.methods.finetune.config import FinetuneConfig, FinetuneTraining
from hf_edit.methods.joining.config import JoinSettings
from hf_edit.methods.memit.config import MemitConfig
from hf_edit.methods.polish import method as polish_method
from hf_edit.methods.polish.config import PolishConfig, PolishSettings
from hf_edit.methods.training.config import TrainingConfig
from hf_edit.models.editable import EditableModel
from hf_edit.prompting import PromptFormat
from hf_edit.settings import Settings
from hf_edit.statistics.config import StatisticsConfig
from tests.editing import contents
from tests.packs.make import dense_logits, logits
from tests.snapshots import changed, snapshot
from tests.tiny import tiny_model, tiny_tokenizer


pytestmark = [
    # random models learn little in few steps, and some never end a question
    pytest.mark.filterwarnings(
        "ignore:.*(not answered|stayed above|invented no question):hf_edit.errors.HfEditWarning"
    ),
    # PEFT asks transformers for the name that transformers has deprecated
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]

STATISTICS = StatisticsConfig(tokens=240, conversations=4, answer_tokens=4, length=12, batch=10)
SHORT: dict[str, Any] = {"max_steps": 3, "learning_rate": 0.05}
POLISH: dict[str, Any] = {
    "rank": 4,
    "wordings": 1,
    "strangers": 0,
    "training": TrainingConfig(**SHORT, size_weight=1e-3),
}
CONFIGS: dict[str, Any] = {
    "polish": PolishConfig(statistics=STATISTICS, **POLISH),
    "finetune": FinetuneConfig(rank=4, training=FinetuneTraining(**SHORT), statistics=STATISTICS),
    "anyedit": AnyEditConfig(
        backend="direct",
        direct=PolishSettings(**{**POLISH, "strangers": 2}),
        together=1,
        join=JoinSettings(rank=4, preservation=0.1),
        statistics=STATISTICS,
    ),
}
EDITS = EditSet(
    [
        Edit("Who wrote the play?", "Tarvello wrote the play.", subject="the play", id="play"),
        Edit("What is the capital of Veldora?", "Port Amber.", subject="Veldora", id="capital"),
    ]
)


def edited(config: Settings, edits: EditSet = EDITS, **arguments: Any) -> EditPack:
    return hf_edit.edit(tiny_model(), tiny_tokenizer(), edits, config, **arguments)


def same_deltas(first: EditPack, second: EditPack) -> bool:
    return first.deltas.keys() == second.deltas.keys() and all(
        torch.equal(delta.B, second.deltas[name].B) and torch.equal(delta.A, second.deltas[name].A)
        for name, delta in first.deltas.items()
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_from_edits_to_a_pack(name: str, tmp_path: Path) -> None:
    config, model = CONFIGS[name], tiny_model().train()
    before = snapshot(model)
    pack = hf_edit.edit(model, tiny_tokenizer(), EDITS, config)
    assert changed(before, snapshot(model)) == []
    assert pack.manifest.method.name == name and type(config).from_mapping(pack.manifest.method.config) == config
    assert pack.edits == EDITS and pack.manifest.receipt.keys() == {"play", "capital"}
    assert (pack.source is not None) == (name == "anyedit")
    assert all(delta.rank <= 4 and delta.norm() > 0.01 for delta in pack.deltas.values())

    pack.save_pretrained(tmp_path / "pack")
    assert same_deltas(EditPack.from_pretrained(tmp_path / "pack"), pack)
    edited(config, resume_dir=tmp_path / "resume").save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "pack") == contents(tmp_path / "again")

    model = tiny_model()
    expected = dense_logits(model, pack.deltas)
    assert (expected - logits(model)).abs().max() > 1e-2
    model.load_adapter(str(tmp_path / "pack"))
    assert (logits(model) - expected).abs().max() <= 2e-5


def test_direct_is_polish_together_or_for_one_and_layers_are_named_once() -> None:
    polish = PolishConfig(**{**POLISH, "strangers": 2}, statistics=STATISTICS)
    together = replace(CONFIGS["anyedit"], together=None, join=JoinSettings())
    assert same_deltas(edited(together), edited(polish)) and edited(together).source is None
    assert same_deltas(edited(CONFIGS["anyedit"], EDITS[:1]), edited(polish, EDITS[:1]))
    direct = AnyEditConfig(backend="direct", layers=(1,), direct=PolishSettings(**POLISH), statistics=STATISTICS)
    assert list(edited(direct).deltas) == ["model.layers.1.mlp.down_proj"]


def test_a_pack_of_two_is_the_stack_of_two_packs_of_one() -> None:
    join = JoinSettings(rank=32, preservation=0.1)
    config = replace(CONFIGS["anyedit"], join=join)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    both, *parts = (hf_edit.edit(model, tokenizer, edits, config) for edits in (EDITS, EDITS[:1], EDITS[1:]))
    same = CombineConfig(rank=32, preservation=0.1, statistics=STATISTICS)
    stacked = hf_edit.stack(parts[::-1], model=model, tokenizer=tokenizer, config=same)
    for name, delta in both.deltas.items():
        assert float((delta.dense() - stacked.deltas[name].dense()).norm()) <= 1e-4 * delta.norm()
    # what each edit asks of every token of its text is its source
    for asked in (*both.source, *stacked.source):
        for wanted in asked.values():
            assert torch.equal(wanted.positions, torch.arange(len(wanted.values)))
    assert [part.source for part in parts] == [None, None]
    for asked, same_asked in zip(both.source, stacked.source[::-1], strict=True):
        for name, wanted in asked.items():
            torch.testing.assert_close(wanted.values, same_asked[name].values)


THREE = EditSet([*EDITS, Edit("Tell me about Mount Fuji", "The fox lives there.", id="fuji")])


def test_a_pack_of_parts_is_the_stack_of_their_packs() -> None:
    config = replace(CONFIGS["anyedit"], together=2, join=JoinSettings(rank=32, preservation=0.1))
    model, tokenizer = tiny_model(), tiny_tokenizer()
    every, *parts = (hf_edit.edit(model, tokenizer, edits, config) for edits in (THREE, THREE[:2], THREE[2:]))
    same = CombineConfig(rank=32, preservation=0.1, statistics=STATISTICS)
    stacked = hf_edit.stack(parts, model=model, tokenizer=tokenizer, config=same)
    for name, delta in every.deltas.items():
        assert float((delta.dense() - stacked.deltas[name].dense()).norm()) <= 1e-4 * delta.norm()
    assert all({"apart", "loss", "right"} <= every.manifest.receipt[edit.id].keys() for edit in THREE)


def test_parts_are_polished_as_their_stack_is() -> None:
    config = replace(CONFIGS["anyedit"], together=2)
    joined, both = edited(config, THREE), edited(replace(config, polish=True), THREE)
    polish = PolishConfig(**{**POLISH, "strangers": 2}, statistics=STATISTICS)
    after = hf_edit.polish(joined, model=tiny_model(), tokenizer=tiny_tokenizer(), config=polish)
    for name, delta in both.deltas.items():
        assert float((delta.dense() - after.deltas[name].dense()).norm()) <= 1e-3 * delta.norm()
        assert float((delta.dense() - joined.deltas[name].dense()).norm()) > 1e-2 * delta.norm()
    assert both.source is None and both.manifest.receipt["fuji"]["steps"] == 3


def test_a_killed_run_does_not_train_an_edit_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting:
        def stage(self, name: str, total: int) -> None:
            pass

        def step(self, advance: int = 1, **info: float | str) -> None:
            if "loss" in info:
                raise KeyboardInterrupt

    config = CONFIGS["anyedit"]
    with pytest.raises(KeyboardInterrupt):
        edited(config, progress=Interrupting(), resume_dir=tmp_path)
    trained: list[int] = []
    own = polish_method.train

    def train(*args: Any) -> Any:
        trained.append(len(args[0].trainees))
        return own(*args)

    monkeypatch.setattr(polish_method, "train", train)
    resumed = edited(config, resume_dir=tmp_path)
    assert len(trained) == 1
    assert same_deltas(resumed, edited(config))


@pytest.mark.parametrize("format", ["plain", "qa"])
@pytest.mark.parametrize("name", ["polish", "finetune"])
def test_formats_without_turns(name: str, format: str) -> None:
    config = CONFIGS[name]
    pack = edited(type(config).from_mapping(config.to_json() | {"format": format}))
    assert pack.manifest.prompt_format.name == format


def test_the_model_is_as_it_was_when_training_is_interrupted() -> None:
    class Interrupting:
        def stage(self, name: str, total: int) -> None:
            self.name = name

        def step(self, advance: int = 1, **info: float | str) -> None:
            if self.name == "training" and "loss" in info:
                raise KeyboardInterrupt

    model = tiny_model("gemma2")
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        hf_edit.edit(model, tiny_tokenizer(), EDITS, CONFIGS["polish"], progress=Interrupting())
    assert changed(before, snapshot(model)) == []


@pytest.mark.parametrize("name", ["polish", "finetune"])
def test_missed_edits_are_named(name: str) -> None:
    with pytest.warns(HfEditWarning, match=r"2 of 2 edits .* after \d+ steps: play, capital\. Raise"):
        edited(CONFIGS[name])


def test_half_precision_models_get_factors_in_float32() -> None:
    pack = hf_edit.edit(tiny_model(dtype=torch.bfloat16), tiny_tokenizer(), EDITS, CONFIGS["polish"])
    assert all(delta.B.dtype == torch.float32 and delta.norm() > 0.01 for delta in pack.deltas.values())


# ---- refining a pack -------------------------------------------------------------------------------------------

MEMIT = MemitConfig(layers=(1,), prefixes=1, prefix_tokens=4, max_evaluations=6, statistics=STATISTICS)


def polished(pack: EditPack, **arguments: Any) -> EditPack:
    return hf_edit.polish(
        pack, **{"model": tiny_model(), "tokenizer": tiny_tokenizer(), "config": CONFIGS["polish"], **arguments}
    )


@pytest.fixture(scope="module")
def memit(fast_cache: Path) -> EditPack:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_EDIT_CACHE", str(fast_cache))
        return edited(MEMIT)


def test_a_pack_is_refined(memit: EditPack, tmp_path: Path) -> None:
    model = tiny_model()
    before, own = snapshot(model), {name: delta.dense() for name, delta in memit.deltas.items()}
    pack = polished(memit, model=model)
    assert changed(before, snapshot(model)) == []
    assert all(torch.equal(delta.dense(), own[name]) for name, delta in memit.deltas.items())
    assert pack.edits == memit.edits and pack.manifest.method.name == "polish"
    assert pack.manifest.parents == (memit.manifest.lineage(),)
    assert list(pack.deltas) == [f"model.layers.{layer}.mlp.down_proj" for layer in (1, 2, 3)]
    pack.verify(model)
    pack.save_pretrained(tmp_path / "pack")
    polished(memit).save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "pack") == contents(tmp_path / "again")


def still(**values: Any) -> PolishConfig:
    """Settings under which polish moves nothing."""
    training = TrainingConfig(max_steps=1, learning_rate=1e-30, size_weight=0.0, shrink=False)
    return PolishConfig(**{**POLISH, "training": training, "statistics": STATISTICS, **values})


@pytest.mark.parametrize("kind", ["memit", "unke", "polish"])
def test_training_begins_at_the_pack(kind: str, memit: EditPack, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it: UnKE changes the attention too, and what polish made spans the keys already."""
    monkeypatch.setattr(polish_method.Polishing, "_helps", lambda *_: True)  # three steps teach nothing
    configs = {
        "memit": MEMIT,
        "unke": UnKEConfig(max_evaluations=2, unke=UnKESettings(steps=3, rank=2), statistics=STATISTICS),
        "polish": PolishConfig(**{**POLISH, "rank": 200, "statistics": STATISTICS}),
    }
    pack = memit if kind == "memit" else edited(configs[kind])
    again = polished(pack, config=still(rank=200))
    assert pack.deltas.keys() <= again.deltas.keys()
    for name, delta in again.deltas.items():
        assert delta.rank <= min(delta.shape[1], 200)
        expected = pack.deltas[name].dense() if name in pack.deltas else torch.zeros(delta.shape)
        assert (delta.dense() - expected).abs().max() < 1e-5


def test_without_settings_the_packs_own_format_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("hf_edit.api.PolishConfig", lambda **values: asked.append(values) or still(**values))
    pack = edited(MemitConfig.from_mapping(MEMIT.to_json() | {"format": "qa"}))
    assert polished(pack, config=None).manifest.prompt_format.name == "qa"
    assert asked == [{"format": "qa"}]


def test_another_base_is_refused(memit: EditPack) -> None:
    model = tiny_model(seed=1)
    before = snapshot(model)
    with pytest.raises(BaseMismatchError):
        polished(memit, model=model)
    assert changed(before, snapshot(model)) == []


# ---- on top of earlier edits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["polish", "finetune"])
def test_earlier_edits_are_held(name: str, memit: EditPack) -> None:
    """With their pack attached; the new pack is one of the base all the same."""
    model, other = tiny_model(), EditSet([Edit("Where is the fox?", "In the house.")])
    hf_edit.attach(model, memit, name="memit")
    before = snapshot(model)
    config = CONFIGS[name]
    packs = [hf_edit.edit(model, tiny_tokenizer(), other, config, earlier=earlier) for earlier in ([], [memit])]
    assert changed(before, snapshot(model)) == []
    assert not same_deltas(*packs)
    packs[1].verify(tiny_model())
    assert packs[1].edits == other


def test_earlier_edits_are_moved_less_by_their_weight() -> None:
    """How far the update moves what enters the outputs at their tokens."""
    view, tokenizer = EditableModel.of(tiny_model()), tiny_tokenizer()
    prompts = PromptFormat.of(None, tokenizer)
    moved = []
    for weight in (0.0, 1000.0):
        training = TrainingConfig(max_steps=10, learning_rate=0.02, drift_weight=0, size_weight=0.05, shrink=False)
        values = {**POLISH, "layers": (2,), "rank": 16, "earlier_weight": weight, "training": training}
        config = PolishConfig(**values, statistics=STATISTICS)
        pack = hf_edit.edit(view.model, tokenizer, list(EDITS)[:1], config, earlier=[EditSet(list(EDITS)[1:])])
        ((name, delta),) = pack.deltas.items()
        ids = torch.tensor([prompts.encode(EDITS[1].prompt, EDITS[1].target).ids])
        keys = view.trace(ids, inputs=[view.linears[2]]).inputs[name][0]
        moved.append(float((keys @ delta.dense().T).norm()))
    assert moved[1] < 0.5 * moved[0]
