"""Training as a whole, on a tiny model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_edit.edits import Edit, EditSet
from hf_edit.errors import ComputationError, ConfigError
from hf_edit.methods.checkpoints import FolderCheckpoints, NoCheckpoints
from hf_edit.methods.msbp.hypernet import Hypernet
from hf_edit.methods.msbp.stream import Stream
from hf_edit.methods.msbp.training import loop
from hf_edit.methods.msbp.training.config import TRAINED, HypernetConfig
from hf_edit.methods.msbp.training.examples import Example, Prepared, split
from hf_edit.methods.msbp.training.state import State
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.processes import Processes
from hf_edit.progress import Silent
from hf_edit.prompting import Encoded
from tests.launching import launched
from tests.methods.msbp.training_data import NOTHING, facts, prompts, quick, trained, trained_and_saved
from tests.tiny import tiny_model


def history(network: Hypernet) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = network.manifest.figures["validation"]
    return found


def same(one: Hypernet, other: Hypernet) -> bool:
    return one.manifest == other.manifest and all(torch.equal(one.tensors[n], other.tensors[n]) for n in one.tensors)


@pytest.mark.parametrize("method", TRAINED)
def test_training_lowers_the_loss_of_edits_not_trained_on(method: str) -> None:
    step_size = 0.02 if method == "mend" else 0.1
    network = trained(quick(method=method, epochs=3, patience=9, step_size=step_size), validation=facts(20)[14:])
    first, *_, best = sorted(history(network), key=lambda record: -record["loss"])
    assert first["batches"] == 0 and best["loss"] < 0.985 * first["loss"]
    assert {"ES", "GS", "LS", "answers", "divergence", "norm"} <= best.keys()
    assert (best["divergence"] > 0) == (method != "emsedit")
    figures = network.manifest.figures
    assert (figures["edits"], figures["validation_edits"], figures["batches"]) == (14, 4, 12)


def test_the_model_comes_back_as_it_was() -> None:
    model = EditableModel.of(tiny_model())
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    trained(quick(method="malmen"), model=model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.model.parameters())


def test_every_parameter_is_handed_to_adam_once(monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[State] = []
    monkeypatch.setattr(State, "keep_as_best", lambda state: states.append(state))
    trained(quick(steps=3, epochs=0))
    groups = states[0].optimiser.param_groups
    handed = [parameter for group in groups for parameter in group["params"]]
    assert len({id(parameter) for parameter in handed}) == len(handed) == 2 * 5 + 2
    assert [group["lr"] for group in groups] == [1e-3, 1e-3] and len(groups[1]["params"]) == 2


class Killed(Exception):
    pass


class KilledAt(Silent):
    """Raises after so many batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches
        self.begun = False

    def stage(self, name: str, total: int) -> None:
        del total
        self.begun = name.startswith("epoch")

    def step(self, advance: int = 1, **info: float | str) -> None:
        if self.begun and "loss" in info:
            self.left -= advance
            if self.left == 0:
                raise Killed


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 2, "validate_every": 2},
        {"epochs": 2, "method": "rledit", "horizon": 2, "validate_every": 1, "steps": 2},
        {"epochs": 2, "accumulate": 2, "step_networks": True, "validation": 0.0},
    ],
    ids=["batches", "sequences", "accumulated"],
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    settings: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    config = quick(**settings)
    whole = trained(config)
    kept = FolderCheckpoints(tmp_path / "resume", "context")
    for batches in (3, 4):
        with pytest.raises(Killed):
            trained(config, checkpoints=kept, progress=KilledAt(batches))
    assert len(list((tmp_path / "resume").iterdir())) == 1
    seen: list[int] = []
    monkeypatch.setattr(loop, "untrained", lambda *_: seen.append(1))  # a run that goes on does not begin again
    resumed = trained(config, checkpoints=kept)
    assert same(whole, resumed) and not seen
    for name, network in (("whole", whole), ("resumed", resumed)):
        network.save_pretrained(tmp_path / name)
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "resumed" / file.name).read_bytes()


def test_other_settings_or_edits_do_not_go_on_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    kept = FolderCheckpoints(tmp_path, "context")
    trained(quick(), checkpoints=kept)
    trained(quick(seed=1), checkpoints=kept)
    trained(quick(), count=13, checkpoints=kept)
    assert len(list(tmp_path.iterdir())) == 3


def test_shares_of_a_capture_add_up_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = EditableModel.of(tiny_model())

    def stream(processes: Processes) -> Stream:
        return Stream(model, model.linears[1:3], TRAINED["emsedit"].rule, [], 1.0, 1, processes=processes)

    with borrowed(model.model):
        texts = Prepared.of(model, [Example.of(edit, prompts()) for edit in facts(5)], 1).edits
        whole = stream(Processes()).captured(texts)
        monkeypatch.setattr(Processes, "add_up", lambda *_: None)  # each keeps its own share
        shares = [stream(Processes(rank, 6)).captured(texts) for rank in range(6)]  # one has nothing to do
    for name in whole.keys:
        assert torch.equal(sum(share.keys[name] for share in shares), whole.keys[name])
        assert torch.equal(sum(share.gradients[name] for share in shares), whole.gradients[name])
    assert torch.equal(sum(share.losses for share in shares), whole.losses)
    assert all(torch.equal(share.texts, whole.texts) for share in shares)


@pytest.mark.slow
def test_two_processes_come_to_what_one_does(tmp_path: Path) -> None:
    settings = {"method": "malmen", "horizon": 2, "batch": 5}
    launched(trained_and_saved, tmp_path / "both", settings)
    both = Hypernet.from_pretrained(tmp_path / "both")
    alone = trained(quick(**settings))
    for name, tensor in alone.tensors.items():
        torch.testing.assert_close(both.tensors[name], tensor, rtol=2e-3, atol=2e-5, msg=name)
    for one, other in zip(history(alone), history(both), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert {name: one[name] for name in ("ES", "GS", "LS")} == {name: other[name] for name in ("ES", "GS", "LS")}


def test_validation_teaches_the_networks_nothing() -> None:
    often, never = (trained(quick(validate_every=n, patience=99)) for n in (1, 100))
    assert len(history(often)) > len(history(never)) == 2
    assert history(often)[-1] == history(never)[-1]


def test_training_ends_when_nothing_gets_better() -> None:
    network = trained(quick(learning_rate=30.0, epochs=50, patience=2, validate_every=1))
    assert network.manifest.figures["batches"] < 20
    best = min(history(network), key=lambda record: record["loss"])
    assert history(network).index(best) == len(history(network)) - 3


def test_the_best_networks_are_kept() -> None:
    network = trained(quick(learning_rate=30.0, epochs=2, patience=2, validate_every=1))
    assert history(network)[0]["loss"] < history(network)[-1]["loss"]
    untrained = trained(quick(learning_rate=30.0, epochs=0))
    assert same_tensors(network.tensors, untrained.tensors)


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("rows", ["chained", "apart"])
def test_chained_or_as_published(rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unchained, every step of a batch starts from the model without the batch, with a step of Adam of its own."""
    ranks: list[list[int]] = []
    real = loop.linked

    def noted(stream: Any, number: int, texts: Any) -> Any:
        ranks.append([number, max((delta.rank for delta in stream.deltas.values()), default=0)])
        return real(stream, number, texts)

    monkeypatch.setattr(loop, "linked", noted)
    network = trained(quick(chained=rows == "chained", validation=0.0), count=8)
    assert [number for number, _ in ranks] == [0, 1, 0, 1]
    assert all((rank > 0) == (rows == "chained" and number > 0) for number, rank in ranks)
    assert network.manifest.figures["updates"] == (2 if rows == "chained" else 4)
    with pytest.raises(ConfigError, match="horizon of 3"):
        quick(chained=False, horizon=3)


@pytest.mark.parametrize(("chained", "accumulate", "updates"), [(True, 2, 2), (False, 2, 2), (False, 1, 8)])
def test_batches_are_accumulated_not_their_steps(chained: bool, accumulate: int, updates: int) -> None:
    config = quick(chained=chained, accumulate=accumulate, steps=2, validation=0.0)
    assert trained(config, count=16).manifest.figures["updates"] == updates


@pytest.mark.parametrize("method", ["emsedit", "malmen"])
def test_every_epoch_has_an_order_of_its_own(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing but orders is drawn."""
    seen: list[list[str]] = []
    monkeypatch.setattr(loop._Training, "_sequence", lambda self, state, _: seen.append(state.order.tolist()))
    trained(quick(method=method, epochs=3, batch=8, validation=0.0), count=8)
    assert len(seen) == 3 and len({tuple(order) for order in seen}) == 3


def test_mend_trains_without_what_it_cannot_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second moments are collected for it; they are not there in this test."""
    monkeypatch.setattr(Stream, "keys", None)
    settings = {"method": "mend", "preservation": 300.0, "horizon": 2, "batch": 3, "step_size": 0.02}
    assert trained(quick(**settings, protect_earlier=0.0)).manifest.figures["batches"] == 5
    trained(quick(**settings))
    with pytest.raises(ConfigError, match=r"protect_earlier = 3.0 does not go with mend"):
        quick(**settings, protect_earlier=3.0)


def test_invented_questions_that_are_taught_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[list[Encoded]] = []

    class Noted(loop.Teacher):
        def __init__(self, model: Any, given: Any, first: int) -> None:
            pools.extend(given)
            super().__init__(model, given, first)

    monkeypatch.setattr(loop, "Teacher", Noted)
    bare = EditSet(Edit(edit.prompt, edit.target, paraphrases=edit.paraphrases) for edit in facts(8))
    own = prompts().encode("Tell me", "a fox")
    taught = [prompts().encode(text, "Nowhere.") for text in (bare[0].prompt, bare[5].paraphrases[0])]
    view = EditableModel.of(tiny_model())
    preserve = replace(NOTHING, asked=[own, *taught])
    with borrowed(view.model):
        config = quick(method="malmen", epochs=0)
        loop.train_hypernet(view, prompts(), bare, None, preserve, config, NoCheckpoints(), Silent())
    assert pools == [[own], [own]]


def test_gradients_are_accumulated_as_a_mean() -> None:
    """Adam does not see a constant factor, the clip does: two batches of the same gradient count as one."""
    state = State([], HypernetConfig(clip=1e9), torch.arange(1), torch.Generator())
    parameter = torch.nn.Parameter(torch.zeros(2))
    state.parameters = [parameter]
    seen: list[Tensor] = []
    state.optimiser = type("Watch", (), {"step": lambda _: seen.append(parameter.grad), "zero_grad": lambda _: None})()  # type: ignore[assignment]
    parameter.grad, state.pending = torch.tensor([2.0, 4.0]), 2
    state.update(Processes())
    assert seen[0].tolist() == [1.0, 2.0] and state.pending == 0 and state.counters.updates == 1


def test_the_base_may_be_in_bfloat16() -> None:
    network = trained(quick(method="malmen"), model=EditableModel.of(tiny_model(dtype=torch.bfloat16)))
    assert network.manifest.base.dtype == "bfloat16"
    assert all(tensor.isfinite().all() for tensor in network.tensors.values())


def test_step_sizes_are_calibrated_where_none_is_given() -> None:
    config = quick(step_size=None, epochs=0, step_networks=True, validation=0.0)
    steps = [tensor.exp() for name, tensor in trained(config).tensors.items() if name.endswith("log_step")]
    assert len(steps) == 2 and all(0.1 < float(size[0]) < 1 and torch.equal(size[:1], size[1:]) for size in steps)


def test_a_batch_that_no_step_helps_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_edit.methods.msbp.probe.Probe.step_size", lambda *_, **__: 0.0)
    with pytest.raises(ComputationError, match="No step size lowers"):
        trained(quick(step_size=None))


def test_edits_without_paraphrases_or_unrelated_questions() -> None:
    bare = Example.of(facts(1)[0].__class__("Who made the lamp?", "Ada"), prompts())
    assert bare.paraphrases == (bare.edit,) and bare.unrelated == ()
    example = Example.of(facts(2)[1], prompts())
    assert len(example.paraphrases) == len(example.unrelated) == 1 and example.edit not in example.paraphrases


def test_what_is_held_out() -> None:
    examples = [Example.of(edit, prompts()) for edit in facts(10)]
    ours, theirs = split(examples, 0.3, 50, seed=0)
    assert len(theirs) == 3 and sorted(map(examples.index, [*ours, *theirs])) == list(range(10))
    assert split(examples, 0.3, 2, seed=0)[1] and len(split(examples, 0.3, 2, seed=0)[1]) == 2
    assert split(examples[:1], 0.5, 9, seed=0) == (examples[:1], [])


def test_weights_of_a_window_and_ranks() -> None:
    assert quick(method="rledit", horizon=3).weights == pytest.approx([1 / 2.8525, 0.95 / 2.8525, 0.9025 / 2.8525])
    assert quick(method="emsedit", horizon=3).weights == (1.0,)
    assert HypernetConfig(horizon=20).ranks(2112) == (1024, 512)
    assert HypernetConfig().ranks(2112) == (1024,) and HypernetConfig().ranks(88) == (44,)
    assert HypernetConfig(method="malmen", horizon=20).ranks(2112) == (1024,)
    assert HypernetConfig(step_networks=True, steps=3, rank=2).ranks(88) == (2, 1, 1)
