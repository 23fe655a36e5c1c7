"""Collecting second moments: every linear asked for in one pass over the corpus."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from hf_edit.batching import batched
from hf_edit.errors import HfEditWarning
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.progress import Progress
from hf_edit.statistics.corpus import Corpus
from hf_edit.statistics.moments import Accumulator, SecondMoments


FEWEST_TOKENS_PER_INPUT = 4
"""Below this a second moment says little about directions that text rarely takes."""


def collect(
    model: EditableModel, corpus: Corpus, linears: Sequence[EditableLinear], batch: int, progress: Progress
) -> SecondMoments:
    """Second moments of the inputs of `linears` over `corpus`; the model is left as it was.

    Args:
        batch: rows and conversations run at once, whose inputs alone are held at a time.

    Warns:
        HfEditWarning: fewer tokens of text than 4 times the width of a linear.
    """
    moments = Accumulator()
    talks = sorted(corpus.conversations, key=len)  # little padding
    progress.stage("statistics: moments", len(corpus.text) + len(talks))
    with borrowed(model.model):
        for rows in corpus.text.split(batch):
            inputs = model.trace(rows.to(model.device), inputs=linears).inputs
            moments.add("text", {name: keys.flatten(0, 1) for name, keys in inputs.items()})
            progress.step(len(rows))
        for part in batched(talks, batch):
            ids, _ = model.ids([talk.ids for talk in part])  # no token sees the padding behind it
            inputs = model.trace(ids, inputs=linears).inputs
            place = torch.arange(ids.shape[1])  # (T,)
            begins = torch.tensor([[talk.answer_start] for talk in part])  # (B, 1)
            ends = torch.tensor([[len(talk)] for talk in part])
            places = {
                "chat": place < begins,
                "prompt": place == begins - 1,
                "answer": (begins <= place) & (place < ends),
            }
            for name, where in places.items():
                if where.any():
                    moments.add(name, {linear: keys[where] for linear, keys in inputs.items()})
            progress.step(len(part))
    width = max(linear.d_in for linear in linears)
    if moments.count("text") < FEWEST_TOKENS_PER_INPUT * width:
        warnings.warn(
            f"Statistics of {moments.count('text')} tokens for linears with {width} inputs: fewer than "
            f"{FEWEST_TOKENS_PER_INPUT} per input, so an edit may spill over. Give statistics.tokens at least "
            f"{FEWEST_TOKENS_PER_INPUT * width}, and a text as long as that.",
            HfEditWarning,
            stacklevel=2,
        )
    return moments.moments(source=corpus.source)
