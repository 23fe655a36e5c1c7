"""The loss of a learned batch, and its gradient in everything that the networks are made of (EMSEdit, section 5).

With the desired changes D of a step as a leaf B = D^T beside its fixed A, one backward pass through the model gives
dL/dD = B.grad^T of every step at once: the shifts enter the weights as a sum, and what was captured is a constant. No
gradient of a weight is ever formed. From dL/dD the networks are differentiated through in portions of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_edit.batching import batched
from hf_edit.methods.msbp.hypernet import copied
from hf_edit.methods.msbp.network import HyperNetwork
from hf_edit.methods.msbp.proposal import Normaliser, Shape, desired
from hf_edit.methods.msbp.stream import Step, Stream
from hf_edit.methods.training.teacher import Known, divergence
from hf_edit.methods.training.texts import Batch, Text, answer_logits
from hf_edit.processes import Processes
from hf_edit.solvers.low_rank import LowRankDelta, concatenated


ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Link:
    """One step of a batch, and what made it.

    Args:
        normaliser: as it was when the step was proposed.
        networks: shape -> network.
    """

    step: Step
    normaliser: Normaliser
    networks: Mapping[Shape, HyperNetwork]


def linked(stream: Stream, number: int, texts: Sequence[Text]) -> Link:
    """Step `number` of a batch through the stream's model as it is, not yet taken."""
    transformer = stream.transformers[number]
    captured = stream.captured(texts)
    proposals = stream.proposals(number, captured)
    assert transformer.networks is not None
    return Link(Step(captured, proposals, 1.0), copied(transformer.normaliser), transformer.networks)


@dataclass(frozen=True)
class Losses:
    """Mean loss per answer token, mean divergence in nats, squared norm of the update, and their weighted sum."""

    answers: float
    divergence: float
    squared_norm: float
    total: float


@dataclass(frozen=True, eq=False)
class Objective:
    """What the model is to be like after a batch.

    Args:
        answers: texts whose answers it is to give, with a weight each group of texts; the weights add up to 1.
        unrelated: texts on which it is to say what the base says.
        locality: weight of the divergence on them.
        size: weight of the squared norm of the update.
    """

    answers: Sequence[tuple[Sequence[Text], float]]
    unrelated: Sequence[Known]
    locality: float
    size: float

    def weighed(self, answers: float, divergence: float, squared_norm: float) -> Losses:
        """These losses with their sum."""
        total = answers + self.locality * divergence + self.size * squared_norm
        return Losses(answers, divergence, squared_norm, total)


def differentiate(
    stream: Stream,
    before: Mapping[str, LowRankDelta],
    links: Sequence[Link],
    objective: Objective,
    processes: Processes,
) -> Losses:
    """Add this process's share of the gradient to that of the networks' parameters.

    Args:
        before: the update that was in place before these steps.
    """
    leaves = [_leaves(link) for link in links]
    with ExitStack() as stack:
        for update in (before, *leaves):
            stack.enter_context(stream.model.updated(update))
        found = _through_model(stream, objective, processes)
    for update in leaves:
        for leaf in update.values():
            for factor in (leaf.B, leaf.A):
                if factor.requires_grad:
                    if factor.grad is None:  # this share of the texts was empty, and processes must share all tensors
                        factor.grad = torch.zeros_like(factor)
                    processes.add_up([factor.grad])
    squared = _through_size(before, leaves, objective.size)
    pairs = [
        (link, update, linear.name) for link, update in zip(links, leaves, strict=True) for linear in stream.linears
    ]
    for link, update, name in processes.mine(pairs):
        _through_network(stream, link, update[name], name)
    answers, drift = found.tolist()
    return objective.weighed(answers, drift, squared)


def losses(stream: Stream, objective: Objective, processes: Processes) -> Losses:
    """The losses of the stream's model as it is."""
    with torch.no_grad(), stream.model.updated(stream.deltas):
        answers, drift = _through_model(stream, objective, processes).tolist()
    return objective.weighed(answers, drift, sum(delta.norm() ** 2 for delta in stream.deltas.values()))


def _leaves(link: Link) -> dict[str, LowRankDelta]:
    """The shift of a step as factors that take gradients: B = D^T, and where no solve fixes it A."""
    leaves = {}
    for name, proposal in link.step.proposals.items():
        B = proposal.changes.T.contiguous().requires_grad_()
        if proposal.solve is not None:
            A = proposal.solve.A.to(B.dtype)
        else:
            assert proposal.pseudo_keys is not None
            A = proposal.pseudo_keys.clone().requires_grad_()
        leaves[name] = LowRankDelta(B, A)
    return leaves


def _through_model(stream: Stream, objective: Objective, processes: Processes) -> Tensor:
    """(2,): mean loss of the answers and mean divergence; with gradients enabled, those of the enclosing update."""
    model, first = stream.model, stream.first
    total = torch.zeros(2, dtype=torch.float64, device=model.device)
    for texts, weight in objective.answers:
        count = sum(len(text.labels) for text in texts)
        for part in batched(sorted(processes.mine(texts), key=lambda text: len(text.ids)), stream.at_once):
            batch = Batch.of(part)
            logits = answer_logits(model, batch, first)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            total[0] += _descend(F.cross_entropy(logits, batch.labels, reduction="sum") * (weight / count), 1.0)
    places = sum(len(known.text.labels) for known in objective.unrelated)
    for some in batched(processes.mine(objective.unrelated), stream.at_once):
        batch = Batch.of([known.text for known in some])
        drift = divergence(answer_logits(model, batch, first), some) * (len(batch.labels) / places)
        total[1] += _descend(drift, objective.locality)
    processes.add_up([total])
    return total


def _descend(loss: Tensor, weight: float) -> Tensor:
    """Backpropagate a loss where it can be; its value."""
    if loss.requires_grad:
        (weight * loss).backward()
    return loss.detach()


@torch.no_grad()
def _through_size(
    before: Mapping[str, LowRankDelta], leaves: Sequence[Mapping[str, LowRankDelta]], weight: float
) -> float:
    """The squared norm of all that stands beside the weights; its gradient, 2 dW A^T and 2 B^T dW, by the factors."""
    total = 0.0
    for name in leaves[0]:
        ours = [update[name] for update in leaves]
        parts = [*([before[name]] if name in before else []), *ours]
        whole = concatenated(parts)
        for part in parts:
            pulled = whole.B @ (whole.A @ part.A.T)  # dW A^T, (d_out, r)
            total += float((pulled * part.B).sum())
            if part.B.requires_grad and weight:
                _add_gradient(part.B, 2 * weight * pulled)
            if part.A.requires_grad and weight:
                _add_gradient(part.A, 2 * weight * (part.B.T @ whole.B) @ whole.A)
    return total


def _add_gradient(leaf: Tensor, gradient: Tensor) -> None:
    leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def _through_network(stream: Stream, link: Link, leaf: LowRankDelta, name: str) -> None:
    """From the gradients of one linear's factors to those of its network, portion by portion of its rows."""
    place, captured, proposal = stream.places[name], link.step.captured, link.step.proposals[name]
    network = link.networks[place.shape]
    keys, rows = captured.keys[name], link.normaliser.rows(captured, name, place, centred=stream.rule.centred)
    assert leaf.B.grad is not None
    by_change = leaf.B.grad.T  # dL/dD, (n, d_out)
    for part in batched(range(len(keys)), ROWS_AT_ONCE):
        rows_of_part = slice(part[0], part[-1] + 1)
        changes, pseudo_keys = desired(stream.rule, keys[rows_of_part], rows[rows_of_part], network, place.module)
        objective = (by_change[rows_of_part] * changes).sum()
        if leaf.A.grad is not None:
            objective = objective + (leaf.A.grad[rows_of_part] * pseudo_keys).sum()
        objective.backward()
    if proposal.solve is not None:
        slope = proposal.solve.log_lambda_gradient(by_change, proposal.changes)
        (network.log_ridge[place.module] * slope.to(network.log_ridge.dtype)).backward()
