from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import hf_edit
from hf_edit.edits import Edit, EditSet
from hf_edit.errors import ConfigError, HfEditWarning, InvalidEditError
from hf_edit.methods import METHODS, method_for
from hf_edit.methods.base import EditResult
from hf_edit.methods.checkpoints import FolderCheckpoints, NoCheckpoints
from hf_edit.methods.memit.config import AlphaEditConfig, MemitConfig, ShortFactConfig
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.solvers.support import touched_columns
from hf_edit.statistics.config import StatisticsConfig
from tests.editing import Listener
from tests.methods.anyedit.test_against_reference import random_moments
from tests.methods.preserving import Fixed
from tests.tiny import tiny_model, tiny_tokenizer


EDITS = EditSet(
    [
        Edit("The capital of France is", "Berlin", subject="France", id="capital"),
        Edit("Hamlet was written by", "the quick fox", subject="Hamlet", id="play"),
        Edit("The boiling point of water, in degrees, is", "9", subject="water", id="water"),
    ]
)
CONFIG = MemitConfig(format="plain", layers=(2,), prefixes=2, prefix_tokens=4, max_evaluations=6)
STATISTICS = StatisticsConfig(tokens=240, conversations=2, answer_tokens=4, length=12, batch=10)


def compute(
    config: ShortFactConfig = CONFIG,
    edits: EditSet = EDITS,
    earlier: tuple[Encoded, ...] = (),
    resume: Path | None = None,
    listener: Listener | None = None,
) -> EditResult:
    model = tiny_model()
    view = EditableModel.of(model)
    method = method_for(config)
    preserve = Fixed(random_moments(view, tuple(range(view.n_layers))), earlier=earlier)
    checkpoints = FolderCheckpoints(resume, "tiny") if resume else NoCheckpoints()
    with borrowed(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*loss stayed above", HfEditWarning)  # random models learn little
        prompts = PromptFormat.of(config.format, tiny_tokenizer())
        return method.compute(view, prompts, edits, preserve, checkpoints, listener or Listener())


@pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning")  # random models learn little and ask nothing
@pytest.mark.parametrize("config", [MemitConfig, AlphaEditConfig])
@pytest.mark.parametrize("format", ["plain", "chat"])
def test_a_pack_makes_the_targets_likelier(config: type[ShortFactConfig], format: str) -> None:
    strong = {"preservation": 1e-3} if config is MemitConfig else {"beta": 1e-3, "null_share": 1.0}
    few = {"layers": (1,), "prefixes": 1, "prefix_tokens": 4, "max_evaluations": 10, "statistics": STATISTICS}
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompts = PromptFormat.of(format, tokenizer)

    def losses() -> list[float]:
        found = []
        for edit in EDITS:
            encoded = prompts.encode(edit.prompt, edit.target)
            with torch.no_grad():
                logits = model(torch.tensor([encoded.ids])).logits[0, encoded.answer_start - 1 : -1]
            found.append(float(F.cross_entropy(logits, torch.tensor(encoded.answer_ids))))
        return found

    before, weights = losses(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pack = hf_edit.edit(model, tokenizer, EDITS, config(format=format, clamp=6, **few, **strong))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    hf_edit.attach(model, pack)
    after = losses()
    assert all(now < then for now, then in zip(after, before, strict=True))
    assert sum(after) < sum(before) - 0.05


def test_a_batch_equals_single_runs() -> None:
    batched, single = compute(), compute(replace(CONFIG, batch=1))
    for one, other in zip(batched.source, single.source, strict=True):
        for name in one:
            assert torch.equal(one[name].positions, other[name].positions)
            assert torch.allclose(one[name].values, other[name].values, rtol=1e-3, atol=1e-4)


def test_a_fact_does_not_see_its_neighbours() -> None:
    together, alone = compute(), compute(edits=EDITS[1:2])
    name = next(iter(together.deltas))
    assert torch.allclose(together.source[1][name].values, alone.source[0][name].values, rtol=1e-3, atol=1e-4)


def test_the_figures_are_in_the_order_of_the_edits() -> None:
    forward, backward = compute(), compute(edits=EditSet(reversed(EDITS)))
    assert list(forward.receipt) == list(EDITS.ids)
    for id, figures in forward.receipt.items():
        assert figures == pytest.approx(backward.receipt[id], rel=1e-3, abs=1e-4)


def test_a_budget_of_columns() -> None:
    few, all_of = compute(replace(CONFIG, columns=6)), compute()
    for name, delta in few.deltas.items():
        assert len(touched_columns(delta)[0]) == 6 < len(touched_columns(all_of.deltas[name])[0])
    with pytest.raises(ConfigError, match=r"columns = 999 is outside 1\.\."):
        compute(replace(CONFIG, columns=999))


def test_earlier_edits_are_protected() -> None:
    prompts = PromptFormat.of("plain", tiny_tokenizer())
    earlier = prompts.encode("The capital of France is", "Paris")
    model = tiny_model()
    view = EditableModel.of(model)
    linear = view.linears[2]
    keys = view.trace(torch.tensor([earlier.ids]), inputs=[linear]).inputs[linear.name][0]
    moved = {}
    for weight in (0.0, 1.0, 1e4):
        result = compute(replace(CONFIG, earlier_weight=weight), EDITS[1:], earlier=(earlier,))
        moved[weight] = float((keys @ result.deltas[linear.name].dense().T).norm())
    assert moved[1e4] < 0.1 * moved[1.0] < 0.1 * moved[0.0]


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    config = replace(CONFIG, batch=2)

    def interrupt() -> None:
        raise KeyboardInterrupt

    whole = compute(config)
    with pytest.raises(KeyboardInterrupt):
        compute(config, resume=tmp_path, listener=Listener(at=2, when=interrupt))
    resumed = Listener()
    again = compute(config, resume=tmp_path, listener=resumed)
    assert (resumed.done, resumed.computed) == (3, 1)
    for name, delta in whole.deltas.items():
        assert torch.equal(delta.A, again.deltas[name].A) and torch.equal(delta.B, again.deltas[name].B)


NAMELESS = EditSet([EDITS[0], Edit("Who is it?", "Me", subject="Hamlet", id="a"), Edit("And you?", "I", id="b")])


def test_edits_without_a_subject_are_named() -> None:
    with pytest.warns(HfEditWarning, match=r"2 of 3 edits have no subject that their prompt names: a, b\."):
        result = compute(edits=NAMELESS)
    prompts = PromptFormat.of("plain", tiny_tokenizer())
    (values,) = result.source[2].values()
    assert values.positions.tolist() == [len(prompts.prompt_ids("And you?")) - 1]
    assert result.receipt["b"]["divergence"] == 0


def test_edits_without_a_subject_can_be_refused() -> None:
    with pytest.raises(InvalidEditError, match="2 of 3 edits .* a, b"):
        compute(replace(CONFIG, without_subject="refuse"), NAMELESS)


def test_targets_that_were_missed_are_named() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with pytest.warns(
        HfEditWarning, match=r"3 of 3 edits have a target whose loss stayed above .*: capital, play, water\."
    ):
        hf_edit.edit(model, tokenizer, EDITS, replace(CONFIG, max_evaluations=1, statistics=STATISTICS))


@pytest.mark.parametrize("config", [MemitConfig, AlphaEditConfig])
def test_settings_choose_the_method(config: type[ShortFactConfig]) -> None:
    name = {MemitConfig: "memit", AlphaEditConfig: "alphaedit"}[config]
    assert METHODS[name].config_class is config
    assert method_for(config()).name == name
    assert config.from_mapping(config(layers=(1, 2)).to_json()) == config(layers=(1, 2))


def test_the_default_layers_follow_the_depth() -> None:
    assert MemitConfig().layers_of(30, spread=True) == (6, 7, 8, 9, 10)
    assert MemitConfig().layers_of(30, spread=False) == (10,)
    for family, expected in (("llama", [0, 1, 2, 3]), ("gemma2", [3])):  # gemma: a norm stands between
        view = EditableModel.of(tiny_model(family))
        assert [linear.layer for linear in method_for(MemitConfig()).linears(view)] == expected


@pytest.mark.parametrize("layers", [(), (1, 1), (2, 1)])
def test_layers_that_make_no_sense(layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="layers = "):
        MemitConfig(layers=layers)
