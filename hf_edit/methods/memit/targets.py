"""Stage 1: for each fact, the change of the edited map's output at its key that makes the model say the target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_edit.methods.descent import Losses, Terms, descend
from hf_edit.methods.memit.config import ShortFactConfig
from hf_edit.methods.memit.facts import Fact
from hf_edit.methods.memit.rows import Rows, rows_of
from hf_edit.models.editable import EditableLinear, EditableModel, check_finite
from hf_edit.processes import Processes
from hf_edit.progress import Progress


@dataclass(frozen=True, eq=False)
class Targets:
    """What stage 1 found for n facts; on the CPU.

    Args:
        states: (n, d) unedited hidden state at the key of each prompt.
        deltas: (n, d) desired changes of the output there.
        losses: (n,) mean negative log likelihood of the target with the change in place.
        divergences: (n,) KL(base || changed) after `{subject} is a`.
        evaluations: (n,) forward passes spent.
    """

    states: Tensor
    deltas: Tensor
    losses: Tensor
    divergences: Tensor
    evaluations: Tensor


def in_batches(
    facts: Sequence[Fact],
    size: int,
    optimise: Callable[[Sequence[Fact]], Iterable[Targets]],
    processes: Processes,
) -> Targets:
    """The targets of all facts, in their order, from batches of about equally long ones, which need little padding.

    Args:
        size: of a batch; less where processes would else not get as many each.
        optimise: gives the targets of a batch, in one part or several.
        processes: which share the batches.
    """
    order = sorted(range(len(facts)), key=lambda i: (facts[i].tail, facts[i].key))
    batches = processes.batches(order, size)
    found = processes.map(lambda part: list(optimise([facts[i] for i in part])), batches)
    parts = [part for batch in found for part in batch]
    back = torch.tensor(order).argsort()
    return Targets(**{name: torch.cat([vars(part)[name] for part in parts])[back] for name in vars(parts[0])})


def optimise_targets(
    model: EditableModel, linear: EditableLinear, facts: Sequence[Fact], config: ShortFactConfig, progress: Progress
) -> Targets:
    """Optimise the changes of a batch of facts at once. Facts do not see each other: a batch equals single runs.

    The loss of a fact is the mean negative log likelihood of its target over its texts, plus `kl_weight` times the
    divergence on its essence. Adam per fact, projected onto a ball after each step; the best change seen is kept, and
    a fact whose target is likely enough leaves the batch, whatever the divergence, which hardly ever ends as low.
    """
    rows, states = rows_of(model, linear, facts)
    check_finite(states, f"The hidden state of layer {linear.layer} at an edit's key")
    norms = states.norm(dim=1)
    terms = Terms(
        norms=norms,
        decays=config.weight_decay / norms,
        first_clamps=torch.full_like(norms, config.clamp),
        clamp=config.clamp,
        learning_rate=config.learning_rate,
        max_evaluations=config.max_evaluations,
        stop_loss=config.stop_loss,
    )
    found = descend(_Likelihood(model, linear, rows, len(facts), config.kl_weight), terms, linear.d_out, progress)
    losses, divergences = found.figures.cpu().unbind(dim=1)
    return Targets(states.cpu(), found.vectors.cpu(), losses, divergences, found.evaluations.cpu())


class _Likelihood:
    """How likely facts are made, and how far their essences move. The changes begin at zero."""

    n_figures = 2

    def __init__(
        self, model: EditableModel, linear: EditableLinear, rows: Rows, n_facts: int, kl_weight: float
    ) -> None:
        self._model, self._linear, self._rows = model, linear, rows
        self._n_facts, self._kl_weight = n_facts, kl_weight
        self._base: Tensor | None = None

    def losses(self, vectors: Tensor) -> Losses:
        log_probabilities = self._rows.log_probabilities(self._model, self._linear, vectors)
        if self._base is None:
            self._base = self._rows.after_essences(log_probabilities.detach(), self._n_facts)
        nll, kl = self._rows.losses(log_probabilities, self._base)
        loss = nll + self._kl_weight * kl
        check_finite(loss, "The loss of an edit's target")
        return Losses(loss, stopping=nll, figures=torch.stack([nll, kl], dim=1))

    def keep(self, rows: Tensor) -> None:
        assert self._base is not None
        self._rows, self._base = self._rows.of_facts(rows), self._base[rows]
