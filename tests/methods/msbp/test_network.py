"""The hypernetwork before it is trained, and what its first step sees."""

from __future__ import annotations

import pytest
import torch

from hf_edit.methods.msbp.network import HyperNetwork


D_IN, D_OUT = 7, 4


def network(seed: int = 0, **values: int) -> HyperNetwork:
    sizes = {"modules": 3, "rank": 5, "blocks": 2, **values}
    return HyperNetwork(D_IN, D_OUT, step_size=1e-3, generator=torch.Generator().manual_seed(seed), **sizes)


def test_a_new_network_is_the_identity() -> None:
    rows = torch.randn(6, D_IN + D_OUT)
    for module in range(3):
        keys, gradients = network()(rows, module)
        assert torch.equal(keys, rows[:, :D_IN]) and torch.equal(gradients, rows[:, D_IN:])


def test_the_clamp_lets_the_gradient_pass_at_0() -> None:
    """Else nothing would be learned: every unit of a new block is at exactly 0."""
    fresh, rows = network(), torch.randn(6, D_IN + D_OUT)
    torch.cat(fresh(rows, 1), dim=1).square().sum().backward()
    for block in fresh.blocks:
        for learned in (block.B, block.bias):
            assert learned.grad is not None and learned.grad.abs().min() > 0
        assert block.A.grad is not None and not block.A.grad.any()  # B is 0
        assert block.shift.grad is not None and block.shift.grad[1].all() and not block.shift.grad[[0, 2]].any()


def test_a_module_has_scale_and_shift_of_its_own() -> None:
    fresh, rows = network(), torch.randn(6, D_IN + D_OUT)
    with torch.no_grad():
        for block in fresh.blocks:
            block.B.normal_(generator=torch.Generator().manual_seed(1))
            block.scale[1] = 0
            block.shift[2] = 1
        plain, unscaled, shifted = (torch.cat(fresh(rows, module), dim=1) for module in range(3))
    assert torch.equal(unscaled, rows)
    assert not torch.allclose(plain, rows) and not torch.allclose(shifted, plain)
    assert (plain >= rows).all()  # what a block adds is not negative


def test_units_below_0_are_cut() -> None:
    fresh, rows = network(blocks=1), torch.randn(6, D_IN + D_OUT)
    with torch.no_grad():
        fresh.blocks[0].bias.fill_(-1.0)  # type: ignore[union-attr, operator]
    assert torch.equal(torch.cat(fresh(rows, 0), dim=1), rows)


def test_sizes_and_ridges_begin_where_they_are_told() -> None:
    fresh = network()
    assert fresh.log_step.exp().tolist() == pytest.approx([1e-3] * 3) and fresh.log_ridge.exp().tolist() == [1.0] * 3


def test_the_seed_decides_the_first_factors_and_they_are_not_scaled() -> None:
    one, same, other = network(3), network(3), network(4)
    assert torch.equal(one.blocks[0].A, same.blocks[0].A)  # type: ignore[arg-type]
    assert not torch.equal(one.blocks[0].A, other.blocks[0].A)  # type: ignore[arg-type]
    wide = HyperNetwork(300, 200, 1, 100, 1, 1.0, torch.Generator().manual_seed(0))
    assert float(wide.blocks[0].A.detach().std()) == pytest.approx(1.0, abs=0.02)  # type: ignore[union-attr, operator]


def test_no_parameter_is_there_twice() -> None:
    """An optimiser would move it twice at every step."""
    parameters = list(network().parameters())
    assert len({id(parameter) for parameter in parameters}) == len(parameters)
