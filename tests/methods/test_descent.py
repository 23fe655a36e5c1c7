"""Vectors descended in one batch go where each goes alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_edit.methods.descent import Adam, Descended, Losses, Terms, descend, learning_rates
from hf_edit.progress import Silent


GOALS = torch.tensor([[0.5, -1.0, 2.0], [0.01, 0.0, 0.02], [3.0, 3.0, -3.0], [1.0, 0.0, 0.0]], dtype=torch.float64)


class Bowls:
    """Each vector is asked to come to a goal; notes how many were asked about at a time."""

    n_figures = 2

    def __init__(self, goals: Tensor) -> None:
        self.goals = goals
        self.asked: list[int] = []

    def losses(self, vectors: Tensor) -> Losses:
        self.asked.append(len(vectors))
        loss = (vectors - self.goals).square().sum(dim=1)
        return Losses(loss, stopping=loss, figures=torch.stack([loss, vectors[:, 0]], dim=1))

    def keep(self, rows: Tensor) -> None:
        self.goals = self.goals[rows]


class Counting(Silent):
    def __init__(self) -> None:
        self.losses: list[float | str] = []

    def step(self, advance: int = 1, **info: float | str) -> None:
        self.losses.append(info["loss"])


def terms(n: int, **changed: float) -> Terms:
    settings = {"clamp": 4.0, "learning_rate": 0.3, "max_evaluations": 30, "stop_loss": 0.05} | changed
    norms = torch.linspace(1, 2, 4, dtype=torch.float64)[:n]
    return Terms(norms=norms, decays=0.01 / norms, first_clamps=torch.full_like(norms, 1.0), **settings)  # type: ignore[arg-type]


def run(problem: Bowls, terms: Terms) -> Descended:
    return descend(problem, terms, 3, Silent())


def test_adam_is_that_of_torch() -> None:
    rates = torch.tensor([0.1, 0.02], dtype=torch.float64)
    ours = torch.zeros(2, 3, dtype=torch.float64)
    theirs = [row.clone().requires_grad_() for row in ours]
    optimiser = torch.optim.Adam(
        [{"params": [row], "lr": float(rate)} for row, rate in zip(theirs, rates, strict=True)]
    )
    adam = Adam(rates, 3)
    for step in range(5):
        gradients = GOALS[:2] * (step - 1.5)
        ours = ours + adam.step(gradients)
        for row, gradient in zip(theirs, gradients, strict=True):
            row.grad = gradient
        optimiser.step()
    torch.testing.assert_close(ours, torch.stack(theirs).detach(), rtol=1e-12, atol=1e-14)


def test_the_first_step_is_that_share_of_the_norm() -> None:
    norms = torch.tensor([1.0, 5.0], dtype=torch.float64)
    step = Adam(learning_rates(norms, 0.3, 3), 3).step(GOALS[2].expand(2, 3))
    torch.testing.assert_close(step.norm(dim=1), 0.3 * norms)


def test_a_batch_goes_where_each_goes_alone() -> None:
    together = Bowls(GOALS)
    found = run(together, terms(4))
    for row in range(4):
        one = terms(4)
        chosen = slice(row, row + 1)
        one = Terms(
            **{**vars(one), **{n: vars(one)[n][chosen] for n in ("norms", "decays", "first_clamps")}},
        )
        alone = run(Bowls(GOALS[chosen]), one)
        torch.testing.assert_close(found.vectors[chosen], alone.vectors, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found.figures[chosen], alone.figures, rtol=1e-12, atol=1e-14)
        assert found.evaluations[row] == alone.evaluations[0]
    assert len(set(found.evaluations.tolist())) > 2


def test_what_is_done_costs_nothing_more() -> None:
    problem, listener = Bowls(GOALS), Counting()
    found = descend(problem, terms(4), 3, listener)
    assert problem.asked[0] == 4 and problem.asked == sorted(problem.asked, reverse=True)
    assert sum(problem.asked) == int(found.evaluations.sum())
    assert sorted(map(float, listener.losses)) == sorted(found.figures[:, 0].tolist())


def test_the_clamp_grows_in_the_second_half() -> None:
    one = terms(1, max_evaluations=9)
    assert [float(one.radii(evaluation)) for evaluation in (1, 4, 6, 8)] == pytest.approx([1.0, 1.0, 2.5, 4.0])
    for most in (2, 3, 4, 9):  # the last evaluation is of a vector that may be as long as the clamp
        found = run(Bowls(100 * GOALS[:1]), terms(1, max_evaluations=most, learning_rate=50.0))
        assert float(found.vectors.norm()) == pytest.approx(4.0)
    assert not run(Bowls(100 * GOALS[:1]), terms(1, max_evaluations=1)).vectors.any()


def test_the_best_is_kept() -> None:
    """A step that is far too long goes beyond the goal."""
    found = run(Bowls(GOALS[1:2]), terms(1, learning_rate=1.0, max_evaluations=2, stop_loss=0.0))
    assert found.vectors.tolist() == [[0.0, 0.0, 0.0]]
    assert found.evaluations.tolist() == [2] and float(found.figures[0, 0]) == pytest.approx(5e-4)


def test_what_is_no_number_ends_and_shows() -> None:
    goals = torch.stack([GOALS[0], torch.full((3,), torch.nan, dtype=torch.float64)])
    found = run(Bowls(goals), terms(2))
    assert found.figures[1].tolist() == [torch.inf] * 2 and found.evaluations[1] == 1
    torch.testing.assert_close(found.vectors[0], run(Bowls(GOALS[:1]), terms(1)).vectors[0], rtol=1e-12, atol=1e-14)
