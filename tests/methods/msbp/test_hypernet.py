"""Using a trained hypernetwork: what it changes, and what it refuses."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_edit
from hf_edit.edits import EditSet
from hf_edit.errors import BaseMismatchError, ConfigError, HfEditWarning, PackError
from hf_edit.methods.base import EditResult
from hf_edit.methods.checkpoints import NoCheckpoints
from hf_edit.methods.msbp.config import (
    DEFAULT_PRESERVATION,
    EMSEditConfig,
    KeyWeights,
    MalmenConfig,
    MendConfig,
)
from hf_edit.methods.msbp.hypernet import Hypernet, tensors_of
from hf_edit.methods.msbp.method import EMSEdit, Malmen, Mend, MultiStep
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Silent
from tests.methods.msbp.training_data import NOTHING, facts, prompts, quick, trained
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def network() -> Hypernet:
    return trained(quick(validation=0.0), count=8)


@pytest.fixture
def saved(network: Hypernet, tmp_path: Path) -> Path:
    network.save_pretrained(tmp_path / "net")
    return tmp_path / "net"


def computed(
    method: MultiStep, edits: EditSet, model: EditableModel | None = None, format: str = "plain"
) -> EditResult:
    view = model or EditableModel.of(tiny_model())
    with borrowed(view.model), warnings.catch_warnings():
        warnings.simplefilter("ignore", HfEditWarning)  # random models learn little
        return method.compute(view, prompts(format), edits, NOTHING, NoCheckpoints(), Silent())


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("emsedit", lambda **s: EMSEdit(EMSEditConfig(steps=2, preservation=0, **s))),
        ("mend", lambda **s: Mend(MendConfig(steps=2, preservation=0, **s))),
    ],
)
def test_an_untrained_network_is_no_network(name: str, made: Any, tmp_path: Path) -> None:
    trained(quick(method=name, epochs=0, step_size=0.2, validation=0.0), count=6).save_pretrained(tmp_path)
    with_one = computed(made(hypernet=str(tmp_path), batch=3), facts(6))
    without = computed(made(layers=(1, 2), step_size=0.2, batch=3), facts(6))
    assert with_one.deltas.keys() == without.deltas.keys() and len(with_one.deltas) == 2
    for label, delta in with_one.deltas.items():
        expected = without.deltas[label].dense()
        torch.testing.assert_close(delta.dense(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_step_size_is_a_factor_on_the_networks_own(saved: Path) -> None:
    once = computed(EMSEdit(EMSEditConfig(hypernet=str(saved))), facts(3))
    same = computed(EMSEdit(EMSEditConfig(hypernet=str(saved), step_size=1.0)), facts(3))
    half = computed(EMSEdit(EMSEditConfig(hypernet=str(saved), step_size=0.5)), facts(3))
    for name, delta in once.deltas.items():
        assert torch.equal(delta.dense(), same.deltas[name].dense())
        assert half.deltas[name].norm() < 0.9 * delta.norm()


def test_using_it_teaches_it_nothing(network: Hypernet) -> None:
    before = {name: tensor.clone() for name, tensor in network.tensors.items()}
    method = EMSEdit(EMSEditConfig(preservation=0))
    method.__dict__["hypernet"] = network
    first, second = computed(method, facts(3)), computed(method, facts(3))
    assert all(torch.equal(first.deltas[name].B, second.deltas[name].B) for name in first.deltas)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.tensors.items())


def test_its_normaliser_goes_on_counting(network: Hypernet) -> None:
    method = EMSEdit(EMSEditConfig(preservation=0))
    method.__dict__["hypernet"] = network
    model = EditableModel.of(tiny_model())
    transformers = method.transformers(model, prompts())
    (first,) = {id(one): one for one in transformers}.values()
    counts = [int(tensor) for name, tensor in network.tensors.items() if name.endswith("count")]
    assert len(transformers) == 2 and [moments.count for moments in first.normaliser.moments.values()] == counts
    assert counts[0] > 0


def test_disk_and_memory_agree(network: Hypernet, saved: Path) -> None:
    read = Hypernet.from_pretrained(saved)
    assert read.manifest == replace(network.manifest, files=read.manifest.files)
    assert all(torch.equal(network.tensors[name], tensor) for name, tensor in read.tensors.items())
    live = tensors_of(list({id(one): one for one in read.transformers(EditableModel.of(tiny_model()))}.values()))
    assert all(torch.equal(live[name], tensor) for name, tensor in read.tensors.items())
    assert {name: (tuple(t.shape), str(t.dtype)[6:]) for name, t in live.items()} == read.manifest.tensors()


def test_it_brings_what_it_was_trained_to_preserve(network: Hypernet, saved: Path) -> None:
    config = {**network.manifest.config, "preservation": 7.0, "moments": {"prompt_weight": 0.25}}
    own = replace(network, manifest=replace(network.manifest, config=config))
    method = EMSEdit(EMSEditConfig(moments=KeyWeights(prompt_weight=9.0)))
    assert (method.preservation, method.moments.prompt_weight) == (DEFAULT_PRESERVATION, 9.0)
    method.__dict__["hypernet"] = own
    assert (method.preservation, method.moments) == (7.0, KeyWeights(prompt_weight=0.25))


@pytest.mark.parametrize(
    "said", [{}, {"preservation": 300.0}, {"preservation": -1.0, "moments": {}}, {"preservation": 3, "moments": 4}]
)
def test_a_manifest_that_does_not_say_so_is_refused(network: Hypernet, said: dict[str, object]) -> None:
    damaged = replace(network, manifest=replace(network.manifest, config=said))
    with pytest.raises(PackError, match="trained to preserve"):
        _ = damaged.preserving


def test_other_weights_are_refused(saved: Path) -> None:
    method = EMSEdit(EMSEditConfig(hypernet=str(saved)))
    with pytest.raises(BaseMismatchError, match="other weights"):
        computed(method, facts(2), EditableModel.of(tiny_model(seed=1)))
    with pytest.raises(BaseMismatchError, match="float32, and this model .bfloat16"):
        computed(method, facts(2), EditableModel.of(tiny_model(dtype=torch.bfloat16)))


def test_other_linears_are_refused(saved: Path, network: Hypernet) -> None:
    with pytest.raises(BaseMismatchError, match="which this model does not have"):
        computed(EMSEdit(EMSEditConfig(hypernet=str(saved))), facts(2), EditableModel.of(tiny_model("gpt2")))
    with pytest.raises(ConfigError, match=r"edits the layers \[1, 2\], not \[2\]"):
        computed(EMSEdit(EMSEditConfig(hypernet=str(saved), layers=(2,))), facts(2))
    assert network.layers == (1, 2)


@pytest.mark.parametrize(
    ("method", "format", "said"),
    [
        (lambda path: Malmen(MalmenConfig(hypernet=path)), "plain", "trained for emsedit, not malmen"),
        (lambda path: EMSEdit(EMSEditConfig(hypernet=path, steps=3)), "plain", "2 steps, not 3"),
        (lambda path: EMSEdit(EMSEditConfig(hypernet=path)), "chat", "format plain, not chat"),
    ],
)
def test_other_uses_are_refused(saved: Path, method: Any, format: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        computed(method(str(saved)), facts(2), format=format)
    assert caught.value.remedy


def test_it_is_refused_before_anything_is_computed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prepared", "invent_prefixes", "protected_by_moments"):
        monkeypatch.setattr(f"hf_edit.methods.msbp.method.{name}", None)
    with pytest.raises(ConfigError, match="trained for emsedit, not malmen"):
        computed(Malmen(MalmenConfig(hypernet=str(saved), contexts=2)), facts(2))


def test_another_tokenizer_is_refused(network: Hypernet) -> None:
    other = hf_edit.prompting.PromptFormat.of("plain", tiny_tokenizer("sentencepiece"))
    with pytest.raises(ConfigError, match="another tokenizer"):
        network.check(other, "emsedit", 2)


def test_a_name_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="is no folder here"):
        computed(EMSEdit(EMSEditConfig(hypernet=str(tmp_path / "none"))), facts(2))
    with pytest.raises(PackError, match=r"has no hypernet\.json"):
        computed(EMSEdit(EMSEditConfig(hypernet=str(tmp_path))), facts(2))


@pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning")
def test_from_training_to_a_pack(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    made = hf_edit.train(model, tokenizer, facts(8), quick(batch=4), resume_dir=tmp_path / "resume")
    made.save_pretrained(tmp_path / "net")
    config = hf_edit.EMSEditConfig(format="plain", hypernet=str(tmp_path / "net"))
    pack = hf_edit.edit(model, tokenizer, facts(3), config)
    assert set(pack.deltas) == {"model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"}
    # the pack says which network it was, and not where it lay
    assert pack.manifest.method.config["hypernet"] == made.identity()
    written = (tmp_path / "net" / "hypernet.json").read_bytes()
    assert made.identity() == f"sha256:{hashlib.sha256(written).hexdigest()}"
    with pytest.raises(hf_edit.HfEditError, match="no edits"):
        hf_edit.train(model, tokenizer, [], quick())
