"""Judging step sizes by forward passes over some of a batch's edits and some of the base's own answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_edit.batching import spread
from hf_edit.edits import Edit
from hf_edit.methods.base import Preservation
from hf_edit.methods.msbp.capture import Captured
from hf_edit.methods.msbp.config import CalibrationConfig
from hf_edit.methods.msbp.proposal import Proposal
from hf_edit.methods.msbp.step_size import smallest_step
from hf_edit.methods.msbp.stream import Stream
from hf_edit.methods.training.teacher import Known, Teacher, answered, divergence, untaught
from hf_edit.methods.training.texts import Batch, Text, answer_logits
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta


class Probe:
    """Finds the step sizes of a stream.

    Args:
        edits: all that the stream is to learn.
        preserve: asked for the base's own answers if drift counts.
    """

    def __init__(
        self,
        stream: Stream,
        prompts: PromptFormat,
        edits: Iterable[Edit],
        preserve: Preservation,
        config: CalibrationConfig,
        seed: int,
    ) -> None:
        self.stream, self.config = stream, config
        self._known: list[Known] = []
        if config.drift_weight:
            held = untaught([answered(preserve.conversations())], prompts, edits, ())
            teacher = Teacher(stream.model, held, stream.first)
            self._known = teacher.drawn(config.conversations, torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def step_size(
        self, texts: Sequence[Text], captured: Captured, proposals: Mapping[str, Proposal], *, last: bool
    ) -> float:
        """The smallest step that is enough; 0 if every one raises the loss.

        Args:
            last: of its batch: it is to reach the target loss; else it takes away its share of the loss.
        """
        config = self.config
        chosen = spread(range(len(texts)), config.probes)
        before = float(captured.losses[torch.isin(captured.texts, captured.texts.new_tensor(chosen))].mean())
        with self.stream.model.updated(self.stream.deltas):
            before += self._drift()
        goal = config.target_loss if last else max(config.target_loss, (1 - config.share) * before)
        unit = {name: proposal.delta(proposal.changes) for name, proposal in proposals.items()}

        def loss_at(size: float) -> float:
            return self._loss(unit, size, [texts[i] for i in chosen])

        start = _first_order(captured, unit)
        return smallest_step(loss_at, start, before, goal) if start > 0 else 0.0

    def _loss(self, unit: Mapping[str, LowRankDelta], size: float, texts: Sequence[Text]) -> float:
        """Mean loss of the answers' tokens with a step of this size on top of the update so far, and the drift."""
        stream = self.stream
        dtype = torch.promote_types(stream.model.dtype, torch.float32)
        shift = {name: LowRankDelta(size * delta.B, delta.A).to(dtype) for name, delta in unit.items()}

        def loss(part: Sequence[Text]) -> float:
            batch = Batch.of(part)
            logits = answer_logits(stream.model, batch, stream.first).float()
            return float(F.cross_entropy(logits, batch.labels, reduction="sum"))

        in_parts = stream.model.memory.in_parts
        with stream.model.updated(stream.deltas), stream.model.updated(shift):
            losses = sum(in_parts("probing", texts, loss, lambda text: len(text.ids), stream.at_once))
            return losses / sum(len(text.labels) for text in texts) + self._drift()

    def _drift(self) -> float:
        """Weighted divergence from the base with whatever update is in place; 0 where it does not count."""
        stream = self.stream

        def drift(part: Sequence[Known]) -> float:
            batch = Batch.of([known.text for known in part])
            return float(divergence(answer_logits(stream.model, batch, stream.first), part)) * len(batch.labels)

        in_parts = stream.model.memory.in_parts
        drifts = sum(in_parts("probing", self._known, drift, lambda known: len(known.text.ids), stream.at_once))
        places = sum(len(known.text.labels) for known in self._known)
        return self.config.drift_weight * drifts / max(1, places)


def _first_order(captured: Captured, unit: Mapping[str, LowRankDelta]) -> float:
    """The step size at which the loss would be gone if every token's went on falling as it begins to.

    sum of l / sum of |<v, dW k>|: the second sum cannot vanish because tokens are at odds.
    """
    slope: Tensor | float = 0.0
    for name, delta in unit.items():
        keys, gradients = captured.keys[name].to(delta.A), captured.gradients[name].to(delta.A)
        slope = slope + (gradients * delta.outputs(keys)).sum(dim=1)  # (n,)
    assert isinstance(slope, Tensor)
    total = float(slope.abs().sum())
    return float(captured.losses.sum()) / total if total > 0 else 0.0
