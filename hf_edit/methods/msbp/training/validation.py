"""How well a hypernetwork does on edits that it was not trained on, under teacher forcing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hf_edit.batching import batched
from hf_edit.methods.msbp.stream import Stream
from hf_edit.methods.msbp.training.examples import Example, Prepared
from hf_edit.methods.msbp.training.outer import Losses, Objective, linked, losses
from hf_edit.methods.training.teacher import Known
from hf_edit.methods.training.texts import Batch, Text, answer_logits, prepared
from hf_edit.processes import Processes


@dataclass(frozen=True)
class Figures:
    """What a validation measures.

    Args:
        losses: of all paraphrases after the last batch.
        ES, GS, LS: share, in percent, of the answers' tokens that are the likeliest after those before them, on
            edits, paraphrases and unrelated questions (with the data's answers; none: there are none), the mean over
            questions. The end of the turn does not count.
    """

    losses: Losses
    ES: float
    GS: float
    LS: float | None

    def to_json(self, batches: int, unit: float) -> dict[str, float | None]:
        """A line of a history.

        Args:
            batches: trained on before.
            unit: the squared norm that the norm is given in.
        """
        found = self.losses
        losses = {"loss": found.total, "answers": found.answers, "divergence": found.divergence}
        losses["norm"] = (found.squared_norm / unit) ** 0.5
        scores = {"ES": self.ES, "GS": self.GS, "LS": self.LS}
        return {"batches": batches, **{name: float(f"{value:.6g}") for name, value in losses.items()}, **scores}


def learn(stream: Stream, texts: Sequence[Text], steps: int, protect: float) -> None:
    """One batch, its steps chained, as at use."""
    for number in range(steps):
        stream.take(linked(stream, number, texts).step)
    stream.protect(texts, protect)


def validated(
    stream: Stream,
    batches: Sequence[Sequence[Example]],
    steps: int,
    protect: float,
    unrelated: Sequence[Known],
    locality: float,
    size: float,
    processes: Processes,
) -> Figures:
    """Teach the batches one after the other, then ask about all of them.

    Args:
        stream: new, with normalisers of its own.
        unrelated: on which the divergence is taken.
    """
    prepared_batches = [Prepared.of(stream.model, batch, stream.first) for batch in batches]
    for batch in prepared_batches:
        learn(stream, batch.edits, steps, protect if len(batches) > 1 else 0.0)
    paraphrases = [text for batch in prepared_batches for text in batch.paraphrases]
    asked = [text for batch in batches for example in batch for text in example.unrelated]
    found = losses(stream, Objective([(paraphrases, 1.0)], unrelated, locality, size), processes)
    scores = [
        accuracy(stream, texts, processes)
        for texts in (
            [text for batch in prepared_batches for text in batch.edits],
            paraphrases,
            prepared(stream.model, asked, stream.first),
        )
    ]
    ES, GS, LS = (None if score is None else round(100 * score, 2) for score in scores)
    assert ES is not None and GS is not None
    return Figures(found, ES, GS, LS)


@torch.no_grad()
def accuracy(stream: Stream, texts: Sequence[Text], processes: Processes) -> float | None:
    """Mean over the texts of the share of their answers' tokens, but for the last, that are the likeliest."""
    if not texts:
        return None
    total = torch.zeros(1, dtype=torch.float64, device=stream.model.device)
    without_end = [Text(text.ids[:-1], text.entering[:-1], text.start) for text in texts]
    for part in batched(sorted(processes.mine(without_end), key=lambda text: len(text.ids)), stream.at_once):
        batch = Batch.of(part)
        with stream.model.updated(stream.deltas):
            right = answer_logits(stream.model, batch, stream.first).argmax(dim=-1) == batch.labels
        total += batch.mean_per_text(right.double()).sum()
    processes.add_up([total])
    return float(total) / len(texts)
