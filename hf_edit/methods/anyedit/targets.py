"""Stage 1: for each chunk, the change of the edited map's output that makes the model say it (AnyEdit, eq. 9-12).

The change is made at the output of the edited linear, at the key position. Where that map writes to the residual
stream this is the shift of the block's output of the paper; where a norm stands between (Gemma 2 and 3) it is the one
that the weight can really produce.

Edits run in lockstep: the first chunks of all of them, then the second ones, each with the changes for its own earlier
chunks in place. They know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hf_edit.methods.anyedit.chunks import Chunk, key_position
from hf_edit.methods.anyedit.config import AnyEditConfig
from hf_edit.methods.anyedit.objective import nested_lengths
from hf_edit.methods.anyedit.windows import Before, Spans, Windows
from hf_edit.methods.descent import Descended, Terms, descend, learning_rates
from hf_edit.methods.training.texts import Text
from hf_edit.models.editable import EditableLinear, EditableModel, check_finite
from hf_edit.progress import Progress


@dataclass(frozen=True, eq=False)
class Targets:
    """What stage 1 found for one edit; on the CPU.

    Args:
        positions: (n,) key positions in prompt + answer.
        deltas: (n, d) desired changes of the output there, fp32.
        losses: (n,) mean negative log likelihood of each chunk's own tokens with its change in place.
        evaluations: (n,) forward passes of the optimisation.
    """

    positions: Tensor
    deltas: Tensor
    losses: Tensor
    evaluations: Tensor


def optimise_targets(
    model: EditableModel,
    linear: EditableLinear,
    texts: Sequence[Text],
    chunks: Sequence[Sequence[Chunk]],
    config: AnyEditConfig,
    n_edits: int,
    progress: Progress,
) -> list[Targets]:
    """Optimise the chunks of each text in order, each with the changes of those before it in place.

    Blocks below the edited one have run once, for the texts. The blocks above keep the attention states of everything
    before the current chunk, which no longer changes, and run on the chunk's tokens alone. A text that has no further
    chunk leaves the batch.

    Args:
        texts: as they enter the edited block.
        chunks: of each text's answer.
        n_edits: of the pack, which may be more.
    """
    lockstep = _Lockstep(model, linear, texts, chunks)
    found: list[list[Descended]] = [[] for _ in texts]
    index = 0
    while lockstep.running:
        changes = _optimised(lockstep, index, config, n_edits, progress)
        check_finite(changes.figures, f"The loss of an edit's chunk {index + 1}")
        for row, i in enumerate(lockstep.running):
            found[i].append(changes.rows(slice(row, row + 1)))
        lockstep.settle(index, changes.vectors)
        index += 1
    together = [Descended.joined(each) for each in found]
    return [
        Targets(torch.tensor(at), each.vectors.cpu(), each.figures[:, 0].float().cpu(), each.evaluations.cpu())
        for at, each in zip(lockstep.positions, together, strict=True)
    ]


class _Lockstep:
    """Texts that are at their chunks of one index: which of them still run, and what stands before their keys.

    Args:
        texts, chunks: as for `optimise_targets`.
    """

    def __init__(
        self, model: EditableModel, linear: EditableLinear, texts: Sequence[Text], chunks: Sequence[Sequence[Chunk]]
    ) -> None:
        self.model, self.linear, self.chunks = model, linear, chunks
        self.ids = [text.ids for text in texts]
        self.positions = [
            [key_position(text.start, chunk) for chunk in cut] for text, cut in zip(texts, chunks, strict=True)
        ]
        self._entering = [text.entering for text in texts]
        self.norms = [self._norms_at(i, at) for i, at in enumerate(self.positions)]
        self.running = list(range(len(texts)))
        self.before = Before(model.no_prefix(linear.layer), self.ids[0].new_zeros(len(texts), 0))
        if any(at[0] for at in self.positions):
            self.before = self.before.followed_by(model, linear, self.spans([(0, at[0]) for at in self.positions]))

    def spans(self, bounds: Sequence[tuple[int, int]]) -> Spans:
        """Tokens [begin, end) of each text that runs."""
        cuts = [(i, slice(*bound)) for i, bound in zip(self.running, bounds, strict=True)]
        return Spans.of([self.ids[i][cut] for i, cut in cuts], [self._entering[i][cut] for i, cut in cuts])

    def settle(self, index: int, changes: Tensor) -> None:
        """Leave `changes` (B, d) in place; the texts that have a chunk behind the one of that index go on to it."""
        going = [row for row, i in enumerate(self.running) if index + 1 < len(self.chunks[i])]
        if len(going) < len(self.running):
            rows = torch.tensor(going, dtype=torch.long, device=changes.device)
            self.running = [self.running[row] for row in going]
            self.before, changes = self.before.rows(rows), changes[rows]
        if going:
            bounds = [(self.positions[i][index], self.positions[i][index + 1]) for i in self.running]
            self.before = self.before.followed_by(self.model, self.linear, self.spans(bounds), changes)

    def _norms_at(self, i: int, positions: Sequence[int]) -> Tensor:
        """(n,): how long the unedited hidden state is at these tokens of a text."""
        layer, end = self.linear.layer, positions[-1] + 1
        start = {layer: self._entering[i][None, :end]}
        trace = self.model.trace(self.ids[i][None, :end], start=start, outputs=[self.linear], leaving=[layer])
        stream = trace.leaving[layer] if self.model.writes_residual else trace.outputs[self.linear.name]
        check_finite(stream, f"The hidden state of layer {layer} over an edit's text")
        accumulate = torch.promote_types(self.model.dtype, torch.float32)
        return stream[0, list(positions)].to(accumulate).norm(dim=1)


def _optimised(lockstep: _Lockstep, index: int, config: AnyEditConfig, n_edits: int, progress: Progress) -> Descended:
    """The changes for the chunks of one index, of every text that runs: as many at once as fit into memory."""
    model, linear, running = lockstep.model, lockstep.linear, lockstep.running
    lengths = [nested_lengths(lockstep.chunks[i], index, config.objective, config.nested_chunks) for i in running]
    keys = [lockstep.positions[i][index] for i in running]
    ends = [key + each[-1] for key, each in zip(keys, lengths, strict=True)]
    keyed = lockstep.before.keyed(lockstep.spans(list(zip(keys, ends, strict=True))))
    labels = [lockstep.ids[i][key + 1 : end + 1] for i, key, end in zip(running, keys, ends, strict=True)]
    side_by_side = pad_sequence(labels, batch_first=True)
    norms = torch.stack([lockstep.norms[i][index] for i in running])

    def descended(part: Sequence[int]) -> Descended:
        rows = torch.tensor(list(part), device=norms.device)
        chosen = norms[rows]
        problem = Windows(
            model,
            linear,
            keyed if len(part) == len(running) else keyed.rows(rows),
            side_by_side[rows],
            [lengths[row] for row in part],
            learning_rates(chosen, config.learning_rate, linear.d_out),
        )
        terms = Terms(
            norms=chosen,
            decays=config.weight_decay / chosen.square(),
            first_clamps=torch.full_like(chosen, config.first_clamp_of(index, n_edits)),
            clamp=config.clamp,
            learning_rate=config.learning_rate,
            max_evaluations=config.max_evaluations,
            stop_loss=config.stop_loss,
        )
        return descend(problem, terms, linear.d_out, progress)

    rows = range(len(running))
    return Descended.joined(list(model.memory.in_parts("targets", rows, descended, ends.__getitem__, backward=True)))


def in_lockstep(model: EditableModel, linear: EditableLinear, texts: Sequence[Text]) -> Iterator[range]:
    """Which texts, by their indices, run in lockstep: in order, and so many that there is room for their states."""
    if not texts:
        return
    start = {linear.layer: texts[0].entering[None, :1]}
    token = model.extended(model.no_prefix(linear.layer), texts[0].ids[None, :1], start=start).size
    lengths = [len(text.ids) for text in texts]
    begin = 0
    while begin < len(texts):
        count = len(texts) - begin
        while count > 1 and not model.memory.keeps(token * count * max(lengths[begin : begin + count])):
            count //= 2
        yield range(begin, begin + count)
        begin += count
