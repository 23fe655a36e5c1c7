"""What is trained: sizes, and that nothing outside follows the leaves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_edit.methods.training.factors import Factors, KeyBasisFactors, LoraFactors
from hf_edit.models.editable import EditableModel
from hf_edit.solvers.key_basis import Keys, key_basis
from hf_edit.solvers.ridge import penalty


CPU = torch.device("cpu")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def lora(view: EditableModel, rank: int = 4) -> LoraFactors:
    """Of three linears, two of them of one shape, trained a little."""
    linears = [view.linears[1], view.linears[2], *view.block_linears(2)[:1]]
    factors = LoraFactors(linears, rank, torch.float64, generator(), CPU)
    with torch.no_grad():
        for leaf in factors.parameters():
            leaf += 0.1 * random(*leaf.shape)
    return factors


def in_key_basis(unit: float = 1.0) -> tuple[KeyBasisFactors, dict[str, Tensor]]:
    """Of two linears, and the moments C that they were whitened by."""
    moments, bases, starts = {}, {}, {}
    for name, d in (("one", 12), ("other", 7)):
        Z = random(5, d)  # singular but for the ridge
        C = Z.T @ Z
        moments[name] = C + 0.01 * C.trace() / d * torch.eye(d, dtype=C.dtype)
        keys = Keys(d)
        keys.add(random(d, 20))
        bases[name] = key_basis(keys, penalty(C, 1.0, 0.01).factor, 3)
        starts[name] = random(5, 3)
    return KeyBasisFactors(bases, starts, unit), moments


@pytest.mark.parametrize("unit", [1.0, 8.3])
def test_the_size_in_the_key_basis_is_what_the_update_moves(unit: float) -> None:
    factors, moments = in_key_basis(unit)
    expected = sum(
        torch.trace(delta.dense() @ moments[name] @ delta.dense().T) for name, delta in factors.deltas().items()
    )
    assert unit**2 * factors.size().item() == pytest.approx(expected.item(), rel=1e-9)


def test_a_unit_changes_what_is_trained_and_not_the_update() -> None:
    bases, starts = {"one": random(3, 12)}, {"one": random(5, 3)}
    plain, scaled = KeyBasisFactors(bases, starts), KeyBasisFactors(bases, starts, 4.0)
    assert torch.equal(plain.deltas()["one"].dense(), scaled.deltas()["one"].dense())
    assert torch.equal(plain.parameters()[0], 4 * scaled.parameters()[0])


def test_the_size_of_lora_is_the_square_of_its_norm(view: EditableModel) -> None:
    factors = lora(view)
    expected = sum(delta.dense().square().sum() for delta in factors.deltas().values())
    assert factors.size().item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("kind", ["key basis", "lora"])
def test_scaled_stepped_and_detached(kind: str, view: EditableModel) -> None:
    factors: Factors = lora(view) if kind == "lora" else in_key_basis()[0]
    before = factors.detached()
    size = factors.size().item()
    factors.scale(0.5)
    for name, delta in factors.deltas().items():
        assert torch.allclose(delta.dense(), 0.5 * before[name].dense(), rtol=1e-12)
    assert factors.size().item() == pytest.approx(0.25 * size)
    kept = {name: delta.dense() for name, delta in before.items()}
    factors.size().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().max() > 0 for leaf in factors.parameters())
    with torch.no_grad():
        for leaf in factors.parameters():
            leaf -= 0.1 * leaf.grad
    for name, delta in before.items():
        assert torch.equal(delta.dense(), kept[name]) and not delta.dense().requires_grad
        assert not torch.equal(factors.detached()[name].dense(), 0.5 * kept[name])


def test_the_caller_keeps_the_start() -> None:
    start = {"one": torch.ones(3, 2)}
    factors = KeyBasisFactors({"one": torch.ones(2, 4)}, start)
    factors.scale(0.0)
    assert torch.equal(start["one"], torch.ones(3, 2)) and not start["one"].requires_grad


def test_lora_begins_at_the_base(view: EditableModel) -> None:
    factors = LoraFactors(view.linears[1:3], 4, torch.float32, generator(), CPU)
    first, second = factors.detached().values()
    for delta in (first, second):
        assert delta.rank == 4 and not delta.dense().any()
        bound = view.linears[1].d_in ** -0.5
        assert delta.A.abs().max() <= bound and float(delta.A.abs().mean()) == pytest.approx(bound / 2, rel=0.2)
    assert not torch.equal(first.A, second.A)


def test_lora_has_no_more_rank_than_the_smaller_side(view: EditableModel) -> None:
    (delta,) = LoraFactors(view.linears[:1], 1000, torch.float32, generator(), CPU).deltas().values()
    assert delta.rank == min(delta.shape) == 32
