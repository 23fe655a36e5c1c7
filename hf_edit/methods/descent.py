"""Adam on several vectors at once that know nothing of each other: a batch of them comes to what each does alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hf_edit.progress import Progress


BETAS, EPSILON = (0.9, 0.999), 1e-8


class Losses(NamedTuple):
    """What R vectors come to.

    Args:
        descended: (R,) what is lowered, differentiable.
        stopping: (R,) what ends a vector's descent.
        figures: (R, k) what is to be known of the best vector; the loss that is shown comes first.
    """

    descended: Tensor
    stopping: Tensor
    figures: Tensor


class Problem(Protocol):
    """Asks for R vectors of its own."""

    n_figures: int

    def losses(self, vectors: Tensor) -> Losses:
        """Of the vectors (R, d)."""

    def keep(self, rows: Tensor) -> None:
        """Go on with some vectors alone, (R,) bool."""


@dataclass(frozen=True, eq=False)
class Terms:
    """How fast and how far each of R vectors goes.

    Args:
        norms: (R,) the length to which those below are relative.
        decays: (R,) weight of a vector's length in its loss.
        first_clamps: (R,) the longest vector in the first half of the evaluations.
        clamp: the longest in the last evaluation; in between it grows in a line. A vector no longer than it has to be
            spares everything else; one that does not get there is given more room.
        learning_rate: Adam's first step.
        max_evaluations: of each vector.
        stop_loss: a vector is done below it.
    """

    norms: Tensor
    decays: Tensor
    first_clamps: Tensor
    clamp: float
    learning_rate: float
    max_evaluations: int
    stop_loss: float

    def radii(self, evaluation: int) -> Tensor:
        """(R,): the longest vectors after so many evaluations, of which the last one leaves nothing to move."""
        growth = max(0.0, 2 * evaluation / max(1, self.max_evaluations - 1) - 1)
        return self.norms * (self.first_clamps + (self.clamp - self.first_clamps) * growth)


@dataclass(frozen=True, eq=False)
class Descended:
    """The best of what was seen.

    Args:
        vectors: (R, d)
        figures: (R, k), infinite where no loss was finite.
        evaluations: (R,) forward passes spent.
    """

    vectors: Tensor
    figures: Tensor
    evaluations: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Descended]) -> Descended:
        """Those of several batches, one behind the other."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def rows(self, rows: slice) -> Descended:
        """Those of some vectors."""
        return Descended(self.vectors[rows], self.figures[rows], self.evaluations[rows])


class Adam:
    """Adam (arXiv 1412.6980) on the rows of a matrix, each with its own learning rate.

    Args:
        learning_rates: (R,)
        d: width of the rows.
    """

    def __init__(self, learning_rates: Tensor, d: int) -> None:
        self._rates = learning_rates[:, None]
        self._mean = learning_rates.new_zeros(len(learning_rates), d)
        self._square = torch.zeros_like(self._mean)
        self._steps = 0

    def step(self, gradients: Tensor) -> Tensor:
        """What to add to the rows, (R, d)."""
        self._steps += 1
        self._mean = self._mean.lerp(gradients, 1 - BETAS[0])
        self._square = self._square.lerp(gradients.square(), 1 - BETAS[1])
        mean, square = (
            moment / (1 - beta**self._steps) for moment, beta in zip((self._mean, self._square), BETAS, strict=True)
        )
        return -self._rates * mean / (square.sqrt() + EPSILON)

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows, (R,) bool."""
        self._rates, self._mean, self._square = self._rates[rows], self._mean[rows], self._square[rows]


def learning_rates(norms: Tensor, share: float, d: int) -> Tensor:
    """With which Adam's first step, the same in every coordinate, is that share of the norms (R,)."""
    return share * norms / d**0.5


def descend(problem: Problem, terms: Terms, d: int, progress: Progress) -> Descended:
    """Vectors (R, d) from zero on, projected onto a ball after each step; a step of progress for each that is done.

    One that is done leaves the batch and costs nothing more.
    """
    norms = terms.norms
    rows = torch.arange(len(norms), device=norms.device)
    vectors = norms.new_zeros(len(norms), d)
    adam = Adam(learning_rates(norms, terms.learning_rate, d), d)
    lowest = torch.full_like(norms, float("inf"))
    figures = norms.new_full((len(norms), problem.n_figures), float("inf"))
    found = Descended(vectors.clone(), figures, torch.zeros_like(rows))
    for evaluation in range(1, terms.max_evaluations + 1):
        vectors.requires_grad_()
        losses = problem.losses(vectors)
        loss = losses.descended.detach()
        better = loss < lowest[rows]
        lowest[rows] = torch.where(better, loss, lowest[rows])
        found.vectors[rows] = torch.where(better[:, None], vectors.detach(), found.vectors[rows])
        found.figures[rows] = torch.where(better[:, None], losses.figures.detach(), found.figures[rows])
        found.evaluations[rows] = evaluation

        # without what is no number any more, from which there is no way back
        going = (losses.stopping.detach() >= terms.stop_loss) & (evaluation < terms.max_evaluations)
        done = rows[~going]
        for shown in found.figures[done, 0].tolist():
            progress.step(loss=shown)
        if len(done) == len(rows):
            break
        penalised = losses.descended + terms.decays[rows] * vectors.norm(dim=1)
        (gradients,) = torch.autograd.grad(penalised[going].sum(), [vectors])
        vectors = vectors.detach()
        if len(done):
            problem.keep(going)
            adam.keep(going)
            rows, vectors, gradients = rows[going], vectors[going], gradients[going]
        vectors = vectors + adam.step(gradients)
        radii = terms.radii(evaluation)[rows]
        vectors = vectors * (radii / torch.maximum(vectors.norm(dim=1), radii))[:, None]
    return found
