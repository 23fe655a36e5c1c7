"""Training one block: equal to the plain reference in float64, and the promises of its result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hf_edit.errors import ComputationError, ConfigError
from hf_edit.methods.anyedit import unke
from hf_edit.methods.anyedit.targets import Targets
from hf_edit.methods.anyedit.unke import train_block
from hf_edit.methods.anyedit.unke_config import UnKESettings
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.models.reach import Reach
from hf_edit.progress import Silent
from hf_edit.prompting import Encoded
from hf_edit.solvers.low_rank import LowRankDelta
from tests.methods.anyedit.reference_unke import (
    block_output,
    inputs_of,
    is_key,
    new_weights,
    reference_block,
    reference_compressed,
    token_weights,
)
from tests.snapshots import changed, snapshot
from tests.tiny import FAMILIES, VOCAB, tiny_model


LAYER = 2


def text(length: int, answer_start: int, seed: int) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    return Encoded(tuple(torch.randint(6, VOCAB, (length,), generator=generator).tolist()), answer_start)


def targets(positions: list[int], seed: int, size: float = 0.5) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    deltas = size * torch.randn(len(positions), 32, generator=generator, dtype=torch.float64)
    unknown = torch.zeros(len(positions))
    return Targets(torch.tensor(positions), deltas, unknown, unknown)


# mixed lengths, longer than the sliding windows of 12; a key at the first token and one at the last but one
EDITS = [text(19, 8, 0), text(7, 1, 1), text(11, 5, 2)]
ASKED = [targets([7, 12, 17], 0), targets([0], 1), targets([4, 9], 2)]
KEPT = [text(15, 4, 3), text(5, 2, 4)]
SETTINGS = UnKESettings(steps=5, rank=3, key_weight=1.5, own_weight=0.7, preserved_weight=0.4, stop_error=1e-6)


def train(
    model: torch.nn.Module, settings: UnKESettings = SETTINGS, kept: list[Encoded] = KEPT, edits: list[Encoded] = EDITS
) -> tuple[dict[str, LowRankDelta], dict[str, float]]:
    with borrowed(model):
        return train_block(EditableModel.of(model), LAYER, edits, ASKED, kept, settings, 0, Silent())


def check(family: str, settings: UnKESettings, kept: list[Encoded], edits: list[Encoded] = EDITS) -> None:
    model = tiny_model(family, dtype=torch.float64)
    view = EditableModel.of(model)
    deltas, figures = train(model, settings, kept, edits)

    linears = {linear.name: linear.module for linear in view.block_linears(LAYER)}
    taught = [
        (e.ids, dict(zip(t.positions.tolist(), t.deltas, strict=True))) for e, t in zip(edits, ASKED, strict=True)
    ]
    preserved = [text.ids for text in kept]
    block, mlp_out = view.blocks[LAYER], view.linears[LAYER].module
    dense, steps, unit = reference_block(model, block, mlp_out, linears, taught, preserved, settings)
    assert list(deltas) == list(dense) and figures["steps"] == steps

    if settings.parametrisation == "full":
        trained = new_weights(linears, dense)
        root = torch.tensor(sum(token_weights(taught, preserved, settings), [])).double().sqrt()
        for name, linear in linears.items():
            inputs = [inputs_of(model, linear, torch.tensor([e.ids]), trained) for e in (*edits, *kept)]
            dense[name], lost = reference_compressed(dense[name], torch.cat(inputs).detach().T * root, settings.rank)
            assert figures[f"compression_error.{name}"] == pytest.approx(lost, abs=1e-7)
            assert lost > 1e-3
    for name in linears:
        assert deltas[name].rank == 3 and deltas[name].B.dtype == torch.float64
        assert dense[name].abs().max() > 1e-4  # something was learned
        assert (deltas[name].dense() - dense[name]).abs().max() <= 1e-9

    # the figures are those of the model with the change in its weights
    final = new_weights(linears, dense)
    missed: dict[str, list[Tensor]] = {"key_error": [], "own_error": [], "preserved_error": []}
    for ids, change in (*taught, *((ids, None) for ids in preserved)):
        with torch.no_grad():
            goal = block_output(model, block, torch.tensor([ids]), {}, (mlp_out, change or {}))
            errors = (block_output(model, block, torch.tensor([ids]), final) - goal).square().sum(dim=1)
        for position, error in enumerate(errors):
            kind = "preserved_error" if change is None else "key_error" if position in change else "own_error"
            if kind == "key_error" or not is_key(ids[: position + 1], taught):
                missed[kind].append(error)
    for kind, found in missed.items():
        assert (kind in figures) == bool(found)
        if found:
            assert figures[kind] == pytest.approx(float((torch.stack(found).mean() / unit).sqrt()), rel=1e-7)


@pytest.mark.usefixtures("really_float64")
@pytest.mark.parametrize("family", FAMILIES)
def test_factors_equal_the_reference(family: str) -> None:
    check(family, SETTINGS, KEPT)


@pytest.mark.usefixtures("really_float64")
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "gptj"])
def test_full_training_and_its_compression_equal_the_reference(family: str) -> None:
    check(family, UnKESettings(**{**vars(SETTINGS), "parametrisation": "full"}), KEPT)


@pytest.mark.usefixtures("really_float64")
def test_nothing_to_preserve() -> None:
    check("llama", SETTINGS, [])


def longer(begun: Encoded, seed: int) -> Encoded:
    """A conversation that goes on behind this one."""
    more = text(9, 1, seed)
    return Encoded((*begun.ids, *more.ids), len(begun) + more.answer_start)


@pytest.mark.usefixtures("really_float64")
@pytest.mark.parametrize("parametrisation", ["factors", "full"])
def test_a_text_that_begins_like_an_edit_is_not_held_to_its_keys(parametrisation: str) -> None:
    """Neither another edit of the pack, nor one taught before."""
    edits, kept = [longer(EDITS[2], 5), *EDITS[1:]], [longer(EDITS[1], 6), *KEPT]
    check("llama", replace(SETTINGS, parametrisation=parametrisation), kept, edits)


def test_the_start_follows_from_the_seed() -> None:
    """Of factors; whole weights begin with nothing."""

    def begun(seed: int) -> LowRankDelta:
        still = replace(SETTINGS, steps=1, learning_rate=1e-12)
        with borrowed(model := tiny_model()):
            deltas, _ = train_block(EditableModel.of(model), LAYER, EDITS, ASKED, KEPT, still, seed, Silent())
        return next(iter(deltas.values()))

    assert torch.equal(begun(1).A, begun(1).A)
    assert not torch.allclose(begun(1).A, begun(2).A, atol=0.01)


@pytest.mark.usefixtures("really_float64")
@pytest.mark.parametrize("parametrisation", ["factors", "full"])
def test_it_does_not_matter_which_texts_run_together(parametrisation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = UnKESettings(**{**vars(SETTINGS), "parametrisation": parametrisation})
    together = train(tiny_model(dtype=torch.float64), settings)
    monkeypatch.setattr(unke, "BATCH_TOKENS", 24)
    apart = train(tiny_model(dtype=torch.float64), settings)
    assert together[1] == pytest.approx(apart[1], rel=1e-9)
    for name, delta in together[0].items():
        assert (delta.dense() - apart[0][name].dense()).abs().max() <= 1e-10


@pytest.mark.parametrize("parametrisation", ["factors", "full"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_keys_are_reached_and_the_rest_stays(family: str, parametrisation: str) -> None:
    model = tiny_model(family)
    before = snapshot(model)
    settings = UnKESettings(steps=80, rank=24, parametrisation=parametrisation, stop_error=0)
    deltas, figures = train(model, settings)
    assert figures["steps"] == 80
    assert figures["key_error"] < 0.2
    assert figures["own_error"] < 0.25 and figures["preserved_error"] < 0.25
    assert all(delta.B.dtype == torch.float32 and delta.rank <= 24 for delta in deltas.values())
    assert not any(factor.requires_grad for delta in deltas.values() for factor in (delta.B, delta.A))
    assert changed(before, snapshot(model)) == []


def test_training_stops_when_the_keys_are_reached() -> None:
    _, figures = train(tiny_model(), UnKESettings(stop_error=0.5))
    assert 0 < figures["steps"] < 50 and figures["key_error"] < 0.5
    still = UnKESettings(stop_error=1.1)
    deltas, figures = train(tiny_model(), still)
    assert figures["steps"] == 0 and figures["key_error"] == pytest.approx(1)
    assert not any(delta.dense().any() for delta in deltas.values())


def test_nothing_asked_changes_nothing() -> None:
    model, zero = tiny_model(), targets([3], 0, size=0.0)
    deltas, figures = train_block(EditableModel.of(model), LAYER, EDITS[:1], [zero], KEPT, SETTINGS, 0, Silent())
    assert figures["key_error"] == 0
    assert not any(delta.dense().any() for delta in deltas.values())


def test_the_callers_gradients_stay_as_they_are() -> None:
    model = tiny_model()
    train_block(EditableModel.of(model), LAYER, EDITS, ASKED, KEPT, UnKESettings(steps=2), 0, Silent())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_targets_that_are_not_finite() -> None:
    wrong = targets([3], 0, size=float("inf"))
    with pytest.raises(ComputationError, match="change asked of block 2 is not finite"):
        train_block(EditableModel.of(tiny_model()), LAYER, EDITS[:1], [wrong], KEPT, SETTINGS, 0, Silent())


def test_a_step_that_is_too_long() -> None:
    with pytest.raises(ComputationError, match="loss of block 2 at step"):
        train(tiny_model(), UnKESettings(learning_rate=1e30))


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="none of factors, full"):
        UnKESettings(parametrisation="lora")
    with pytest.raises(ConfigError, match="rank = 0 is below 1"):
        UnKESettings(rank=0)


@pytest.mark.parametrize("family", ["deepseek_v3", "jetmoe", "mamba", "gemma3n_text", "mixtral"])
def test_only_maps_that_every_reader_of_a_pack_reaches_are_trained(family: str) -> None:
    view = EditableModel.of(tiny_model(family))
    names = [linear.name for linear in unke.trained_linears(view, LAYER)]
    reach = Reach(view.model)
    assert names and all(reach.reaches(name) for name in names)
    assert not any("router" in name or name.endswith(".gate") for name in names)
    size = view.linears[LAYER].d_out
    asked = [Targets(t.positions, torch.randn(len(t.positions), size).double(), t.losses, t.losses) for t in ASKED]
    with borrowed(view.model):
        deltas, _ = train_block(view, LAYER, EDITS, asked, KEPT, replace(SETTINGS, steps=1), 0, Silent())
    assert list(deltas) == names
