"""How much of a delta survives rounding: predicted, measured, and saved by compensating."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_edit.compose.merge import merge
from hf_edit.compose.merge_report import MIN_SURVIVAL, merge_report
from hf_edit.compose.rounding import MergeLoss, Merging
from hf_edit.errors import HfEditWarning
from hf_edit.solvers.low_rank import LowRankDelta
from tests.packs.make import make_pack, random_deltas
from tests.snapshots import changed, snapshot
from tests.tiny import tiny_model


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [1e-1, 1e-2, 1e-3, 1e-4]


def weight_and_delta(kind: str, size: float, dtype: torch.dtype, shape=(700, 320)) -> tuple[Tensor, LowRankDelta]:
    """A weight and a delta of |dW| = size |W|: of even rows and columns, of very uneven ones, or of rank 1."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(shape, generator=generator) * 0.04
    rank = 1 if kind == "rank 1" else 12
    B, A = torch.randn(shape[0], rank, generator=generator), torch.randn(rank, shape[1], generator=generator)
    if kind == "uneven":
        weight *= torch.exp(torch.randn(shape[0], 1, generator=generator))
        B *= torch.exp(1.5 * torch.randn(shape[0], 1, generator=generator))
        A *= torch.exp(1.5 * torch.randn(shape[1], generator=generator))
    weight = weight.to(dtype)
    return weight, LowRankDelta(B * (size * float(weight.float().norm() / (B @ A).norm())), A)


@pytest.mark.parametrize("kind", ["even", "uneven", "rank 1"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_measured_loss_is_what_a_dense_sum_shows(dtype: torch.dtype, kind: str) -> None:
    for size in SIZES:
        weight, delta = weight_and_delta(kind, size, dtype)
        change = delta.to(torch.float64).dense()
        rounded, loss = Merging(weight, delta, "nearest").rounded()
        assert torch.equal(rounded, (weight.double() + change).to(dtype))
        there = rounded.double() - weight.double()
        assert loss.size == pytest.approx(size, rel=1e-3)
        assert loss.survival == pytest.approx(float((there * change).sum() / change.square().sum()), abs=1e-9)
        assert loss.error == pytest.approx(float((there - change).norm() / change.norm()), abs=1e-9)
        Q = torch.linalg.qr(delta.A.double().T)[0]
        assert loss.span_error == pytest.approx(float(((there - change) @ Q).norm() / change.norm()), abs=1e-9)


@pytest.mark.parametrize("kind", ["even", "uneven", "rank 1"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_prediction_is_within_five_points_of_what_is_measured(dtype: torch.dtype, kind: str) -> None:
    for size in SIZES:
        merging = Merging(*weight_and_delta(kind, size, dtype), "nearest")
        predicted, (_, measured) = merging.predicted(), merging.rounded()
        assert abs(predicted.survival - measured.survival) <= 0.05
        assert abs(predicted.error - measured.error) <= 0.05
        assert predicted.size == pytest.approx(measured.size, rel=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_the_prediction_for_compensated_rounding(size: float) -> None:
    merging = Merging(*weight_and_delta("even", size, torch.bfloat16), "compensated")
    predicted, (_, measured) = merging.predicted(), merging.rounded()
    assert abs(predicted.survival - measured.survival) <= 0.05
    assert predicted.error == pytest.approx(measured.error, rel=0.1)


@pytest.mark.parametrize("kind", ["even", "uneven", "rank 1"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compensating_keeps_the_delta_where_it_acts(dtype: torch.dtype, kind: str) -> None:
    for size in SIZES:
        weight, delta = weight_and_delta(kind, size, dtype)
        losses: dict[str, MergeLoss] = {}
        for rounding in ("nearest", "compensated"):
            rounded, losses[rounding] = Merging(weight, delta, rounding).rounded()
            exact = weight.double() + delta.to(torch.float64).dense()
            step = torch.maximum(weight.double().abs(), exact.abs()) * torch.finfo(dtype).eps + 1e-7
            assert ((rounded.double() - exact).abs() <= step).all()  # never beyond the next value
        nearest, compensated = losses["nearest"], losses["compensated"]
        # the fewer inputs the delta hangs on, the fewer weights there are to compensate with
        assert compensated.span_error <= nearest.span_error / (1.5 if kind == "uneven" else 3)
        assert abs(compensated.survival - 1) <= 0.05
        assert compensated.error >= nearest.error  # the price


def test_a_delta_of_zeros_loses_nothing() -> None:
    weight = torch.randn(300, 20)
    for rounding in ("nearest", "compensated"):
        merging = Merging(weight, LowRankDelta(torch.zeros(300, 2), torch.zeros(2, 20)), rounding)
        rounded, loss = merging.rounded()
        assert torch.equal(rounded, weight)
        for one in (loss, merging.predicted()):
            assert (one.survival, one.error, one.span_error) == (1.0, 0.0, 0.0)
    assert (
        Merging(torch.zeros(4, 4), LowRankDelta(torch.ones(4, 1), torch.ones(1, 4)), "nearest").predicted().size == 0
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_report_tells_of_a_merge_before_it_is_made(family: str) -> None:
    model = tiny_model(family, dtype=torch.bfloat16)
    pack = make_pack(model, deltas=random_deltas(model, (1, 5, 3), size=0.01))
    before = snapshot(model)
    report = merge_report(model, pack, measure=True)
    assert changed(before, snapshot(model)) == []
    receipt = merge(model, pack)
    assert report.advice is None and report.measured is not None
    assert receipt.merges[0].loss == report.to_json()["measured"]
    assert report.predicted.keys() == pack.deltas.keys()
    for name, loss in report.predicted.items():
        assert loss.survival == pytest.approx(report.measured[name].survival, abs=0.05)
    assert 0.05 < report.total.error < 0.5


def test_where_too_much_is_lost_it_says_what_to_do() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    pack = make_pack(model, deltas=random_deltas(model, (1, 5), size=5e-4))
    report = merge_report(model, pack)
    assert report.total.survival < MIN_SURVIVAL
    assert report.advice is not None
    for remedy in ("keep the pack attached", "float32", "compensated"):
        assert remedy in report.advice
    assert merge_report(tiny_model(), pack).advice is None
    assert merge_report(model, pack, rounding="compensated").advice is None
    with pytest.warns(HfEditWarning, match="keep the pack attached"):
        merge(model, pack)


def test_a_module_that_does_not_change_is_no_loss() -> None:
    zero = LowRankDelta(torch.zeros(700, 2), torch.zeros(2, 320))
    loss = Merging(torch.randn(700, 320), zero, "nearest").predicted()
    assert (loss.size, loss.survival, loss.error) == (0.0, 1.0, 0.0)
