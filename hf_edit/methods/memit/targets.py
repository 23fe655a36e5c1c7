"""Stage 1: for each fact, the change of the edited map's output at its key that makes the model say the target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_edit.batching import batched
from hf_edit.methods.memit.config import ShortFactConfig
from hf_edit.methods.memit.facts import Fact
from hf_edit.methods.memit.rows import rows_of
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
        size: of a batch; less where every process would not get one.
        optimise: gives the targets of a batch, in one part or several.
        processes: which share the batches.
    """
    order = sorted(range(len(facts)), key=lambda i: (facts[i].tail, facts[i].key))
    size = min(size, -(-len(facts) // processes.count))
    found = processes.map(lambda part: list(optimise([facts[i] for i in part])), list(batched(order, size)))
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
    norms, d = states.norm(dim=1), states.shape[1]
    deltas = [torch.zeros_like(state, requires_grad=True) for state in states]
    # the first step of Adam moves every coordinate by its learning rate, so the vector by learning_rate * |h|
    groups = [
        {"params": [delta], "lr": config.learning_rate * float(norm) / d**0.5}
        for delta, norm in zip(deltas, norms, strict=True)
    ]
    optimiser = torch.optim.Adam(groups)

    best = torch.zeros_like(states)
    lowest = torch.full_like(norms, float("inf"))
    losses, divergences, evaluations = torch.zeros_like(norms), torch.zeros_like(norms), torch.zeros_like(norms)
    running = torch.arange(len(facts), device=states.device)
    base: Tensor | None = None
    for evaluation in range(1, config.max_evaluations + 1):
        current = torch.stack([deltas[i] for i in running])
        log_probabilities = rows.log_probabilities(model, linear, current)
        if base is None:  # the changes begin at zero
            base = rows.after_essences(log_probabilities.detach(), len(facts))
        nll, kl = rows.losses(log_probabilities, base[running])
        loss = nll + config.kl_weight * kl
        check_finite(loss, "The loss of an edit's target")

        better = loss.detach() < lowest[running]
        improved = running[better]
        best[improved], lowest[improved] = current.detach()[better], loss.detach()[better]
        losses[improved], divergences[improved] = nll.detach()[better], kl.detach()[better]
        evaluations[running] = evaluation

        done = (nll.detach() < config.stop_loss) | (evaluation == config.max_evaluations)
        for i in running[done].tolist():
            progress.step(loss=float(losses[i]))
        if done.all():
            break
        if done.any():
            rows = rows.of_facts(~done)
        running = running[~done]
        penalised = loss[~done] + config.weight_decay * current.norm(dim=1)[~done] / norms[running]
        moved = [deltas[i] for i in running]
        for delta, gradient in zip(moved, torch.autograd.grad(penalised.sum(), moved), strict=True):
            delta.grad = gradient
        optimiser.step()
        with torch.no_grad():
            for delta, radius in zip(moved, config.clamp * norms[running], strict=True):
                delta.mul_(radius / delta.norm().clamp_min(radius))
    return Targets(states.cpu(), best.cpu(), losses.cpu(), divergences.cpu(), evaluations.long().cpu())
