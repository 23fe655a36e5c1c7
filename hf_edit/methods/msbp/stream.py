"""Edits one batch after the other, each by a few backward passes through the model as it then is (MSBP)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_edit.methods.msbp.capture import Captured, captured_by
from hf_edit.methods.msbp.network import HyperNetwork
from hf_edit.methods.msbp.proposal import Normaliser, Place, Proposal, Rule, Shape, desired, places
from hf_edit.methods.training.texts import Batch, Text, answer_logits
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.processes import Processes
from hf_edit.solvers.low_rank import LowRankDelta, concatenated, merged_when_wide
from hf_edit.solvers.shift import KeySolve, Protected, Ridge


R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Transformer:
    """What stands between captured rows and desired changes at one step: statistics, and a network if there is one.

    Args:
        normaliser: of the rows seen at this step.
        networks: shape -> hypernetwork; none: the identity, with step size 1 and the method's ridge.
    """

    normaliser: Normaliser
    networks: Mapping[Shape, HyperNetwork] | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One backward pass and the shift that came of it.

    Args:
        captured: what it started from.
        proposals: linear name -> the update, linear in the step size.
        size: the step size that was taken; 0: the step was refused.
    """

    captured: Captured
    proposals: dict[str, Proposal]
    size: float

    def deltas(self) -> dict[str, LowRankDelta]:
        """The shift, by linear name."""
        return {name: proposal.delta(self.size * proposal.changes) for name, proposal in self.proposals.items()}


class Stream:
    """A model that learns batch after batch, without being changed: the update stands beside it.

    Args:
        model: with nothing of the update attached.
        linears: the edited maps, by ascending layer.
        rule: which method it is.
        transformers: one for each step of a batch, in order; the same one may serve several.
        ridge: lambda, where no network says it.
        at_once: texts run together.
        protected: linear name -> what no step may move from the beginning; copied.
        processes: those that hold the same stream, and share its captures.
    """

    def __init__(
        self,
        model: EditableModel,
        linears: Sequence[EditableLinear],
        rule: Rule,
        transformers: Sequence[Transformer],
        ridge: float,
        at_once: int,
        protected: Mapping[str, Protected] | None = None,
        processes: Processes = Processes(),
    ) -> None:
        self.model, self.linears, self.rule, self.processes = model, linears, rule, processes
        self.transformers, self.ridge, self.at_once = transformers, ridge, at_once
        start = protected or {linear.name: Protected(linear.d_in, model.device) for linear in linears}
        self.protected = {name: one.copied() for name, one in start.items()}
        self.places: dict[str, Place] = places(linears)
        self.first = linears[0].layer
        self.deltas: dict[str, LowRankDelta] = {}

    def captured(self, texts: Sequence[Text]) -> Captured:
        """Keys and output gradients of the texts, with the update in place; each process runs its share of them."""
        with self.model.updated(self.deltas):
            return captured_by(self.processes, self.model, self.linears, texts, self.first, self.at_once)

    @torch.no_grad()
    def proposals(self, step: int, captured: Captured) -> dict[str, Proposal]:
        """What one more step would do to each linear; the normaliser takes the rows of all of them in first."""
        transformer = self.transformers[step]
        transformer.normaliser.add(captured, self.places)
        return {linear.name: self._proposal(transformer, captured, linear) for linear in self.linears}

    def _proposal(self, transformer: Transformer, captured: Captured, linear: EditableLinear) -> Proposal:
        place, keys = self.places[linear.name], captured.keys[linear.name]
        network = None if transformer.networks is None else transformer.networks[place.shape]
        rows = transformer.normaliser.rows(captured, linear.name, place, centred=self.rule.centred)
        changes, pseudo_keys = desired(self.rule, keys, rows, network, place.module)
        if not self.rule.solve:
            return Proposal(changes, None, pseudo_keys)
        ridge = self.ridge if network is None else float(network.log_ridge[place.module].exp())
        return Proposal(changes, KeySolve(keys, Ridge(self.protected[linear.name], ridge)), None)

    def shifted(self, shift: Mapping[str, LowRankDelta]) -> dict[str, LowRankDelta]:
        """The update so far and a shift, in the model's dtype or fp32; never wider than the weights."""
        dtype = torch.promote_types(self.model.dtype, torch.float32)
        total = {}
        for name, delta in shift.items():
            before = [self.deltas[name]] if name in self.deltas else []
            total[name] = merged_when_wide(concatenated([*before, delta.to(dtype)]))
        return total

    def take(self, step: Step) -> None:
        """Let a step stand."""
        if step.size:
            self.deltas = self.shifted(step.deltas())

    def protect(self, texts: Sequence[Text], weight: float) -> None:
        """Keep the outputs where the answers of texts are predicted, from now on; without a solve nothing can be."""
        if texts and weight and self.rule.solve:
            for name, rows in self.keys(texts).items():
                self.protected[name].add(rows, weight)

    @torch.no_grad()
    def keys(self, texts: Sequence[Text]) -> dict[str, Tensor]:
        """Keys where the answers of texts are predicted, with the update in place, (n, d_in) by linear name."""

        def kept(_: Tensor, inputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
            return {name: rows.to(self.model.device)[batch.where] for name, rows in inputs.items()}

        parts = list(self._passes(texts, kept, self.linears))
        return {linear.name: torch.cat([part[linear.name] for part in parts]) for linear in self.linears}

    @torch.no_grad()
    def judged(self, texts: Sequence[Text]) -> tuple[list[float], list[bool]]:
        """Each text's mean loss per answer token, and whether every token of it is the likeliest."""

        def judged(logits: Tensor, _: dict[str, Tensor], batch: Batch) -> list[tuple[float, bool]]:
            loss = F.cross_entropy(logits.float(), batch.labels, reduction="none")
            wrong = batch.mean_per_text((logits.argmax(dim=-1) != batch.labels).float())
            return list(zip(batch.mean_per_text(loss).tolist(), (wrong == 0).tolist(), strict=True))

        found = [one for part in self._passes(texts, judged) for one in part]
        return [loss for loss, _ in found], [right for _, right in found]

    def _passes(
        self,
        texts: Sequence[Text],
        of: Callable[[Tensor, dict[str, Tensor], Batch], R],
        read: Sequence[EditableLinear] = (),
    ) -> Iterator[R]:
        """What `of` makes of logits, inputs of these linears and batch, of passes over some of the texts at a time."""

        def passed(part: Sequence[Text]) -> R:
            batch = Batch.of(part)
            size = tuple(batch.ids.shape)
            with self.model.updated(self.deltas), self.model.reading(read, size) as inputs:
                return of(answer_logits(self.model, batch, self.first), inputs, batch)

        return self.model.memory.in_parts("passing", texts, passed, lambda text: len(text.ids), self.at_once)
