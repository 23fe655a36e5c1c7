"""Collecting second moments: every linear asked for in one pass over the corpus, or over a part of it."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from hf_edit.batching import batched
from hf_edit.errors import HfEditWarning, StatisticsError
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.processes import Processes
from hf_edit.progress import Progress
from hf_edit.prompting import Encoded
from hf_edit.statistics.corpus import Corpus
from hf_edit.statistics.moments import Accumulator, SecondMoments
from hf_edit.statistics.shards import Shard
from hf_edit.statistics.unfinished import Unfinished


FEWEST_TOKENS_PER_INPUT = 4
"""Below this a second moment says little about directions that text rarely takes."""
Unit: TypeAlias = Tensor | Sequence[Encoded]
"""What is run together: rows of text (B, T), or conversations."""


def collect(
    model: EditableModel,
    corpus: Corpus,
    linears: Sequence[EditableLinear],
    batch: int,
    progress: Progress,
    shard: Shard = Shard(),
    unfinished: Unfinished | None = None,
) -> SecondMoments:
    """Second moments of the inputs of `linears` over `corpus`; the model is left as it was.

    Several processes share the work, and each gets the moments of it all.

    Args:
        batch: rows and conversations run at once, whose inputs alone are held at a time.
        shard: the part of the corpus that is collected over.
        unfinished: keeps the sums from time to time, and goes on from those it has.

    Raises:
        StatisticsError: there are more shards than batches.

    Warns:
        HfEditWarning: fewer tokens of text than 4 times the width of a linear, in the whole corpus.
    """
    processes, kept = Processes.joined(model.device), unfinished or Unfinished()
    part, units = shard.split(processes), _units(corpus, batch)
    if not shard.of(units):
        raise StatisticsError(
            f"Shard {shard} is empty: the corpus has {len(units)} batches.", f"Use at most {len(units)} shards."
        )
    mine = part.of(units)
    name = sums_name(linears, part)
    moments, done = _resumed(kept, name)
    progress.stage("statistics: moments", sum(map(len, mine)))
    if done:
        progress.step(sum(map(len, mine[:done])))
    with borrowed(model.model):
        for number, unit in enumerate(mine[done:], start=done + 1):
            _add(moments, model, linears, unit)
            progress.step(len(unit))
            kept.keep(name, lambda: {**moments.tensors(), "units": torch.tensor(number)}, seldom=True)
    if processes.count > 1:
        moments.add_up(processes, {one.name: _nothing(one) for one in linears})
    if shard.count == 1:
        warn_of_few(moments.count("text"), max(linear.d_in for linear in linears))
    return moments.moments(source=corpus.source)


def sums_name(linears: Sequence[EditableLinear], shard: Shard) -> str:
    """Under which name the sums of a collection are kept while it goes on."""
    names = json.dumps([linear.name for linear in linears])
    return f"sums-{hashlib.sha256(names.encode()).hexdigest()[:16]}-{shard.number}-of-{shard.count}"


def warn_of_few(tokens: int, width: int) -> None:
    """Say so where text of so many tokens is short for maps of `width` inputs."""
    if tokens < FEWEST_TOKENS_PER_INPUT * width:
        warnings.warn(
            f"Statistics of {tokens} tokens for linears with {width} inputs: fewer than "
            f"{FEWEST_TOKENS_PER_INPUT} per input, so an edit may spill over. Give statistics.tokens at least "
            f"{FEWEST_TOKENS_PER_INPUT * width}, and a text as long as that.",
            HfEditWarning,
            stacklevel=3,
        )


def _units(corpus: Corpus, batch: int) -> list[Unit]:
    """The corpus in the order in which it is added up."""
    talks = sorted(corpus.conversations, key=len)  # little padding
    return [*corpus.text.split(batch), *batched(talks, batch)]


def _resumed(kept: Unfinished, name: str) -> tuple[Accumulator, int]:
    """The sums of a killed collection and how many units they are of, or a new beginning."""
    tensors = kept.load(name)
    if tensors is None:
        return Accumulator(), 0
    done = int(tensors.pop("units"))
    return Accumulator.from_tensors(tensors), done


def _nothing(linear: EditableLinear) -> Tensor:
    """No inputs of this linear, (0, d_in), where they would come from."""
    return torch.zeros(0, linear.d_in, device=next(linear.module.parameters()).device)


def _add(moments: Accumulator, model: EditableModel, linears: Sequence[EditableLinear], unit: Unit) -> None:
    """Run a unit, in parts as memory goes, and add its inputs to the sums."""
    parts: Iterator[dict[str, dict[str, Tensor]]]
    if isinstance(unit, Tensor):
        parts = model.memory.in_parts(
            "text", unit.unbind(), lambda rows: _of_text(model, linears, torch.stack(list(rows))), len
        )
    else:
        parts = model.memory.in_parts("conversations", unit, lambda talks: _of_talks(model, linears, talks), len)
    for part in parts:
        for name, inputs in part.items():
            moments.add(name, inputs)


def _of_text(model: EditableModel, linears: Sequence[EditableLinear], rows: Tensor) -> dict[str, dict[str, Tensor]]:
    """Part -> linear name -> inputs, (n, d_in)."""
    inputs = model.trace(rows.to(model.device), inputs=linears, spread=True).inputs
    return {"text": {name: keys.flatten(0, 1) for name, keys in inputs.items()}}


def _of_talks(
    model: EditableModel, linears: Sequence[EditableLinear], talks: Sequence[Encoded]
) -> dict[str, dict[str, Tensor]]:
    """Part -> linear name -> inputs, (n, d_in); no part without tokens."""
    ids, _ = model.ids([talk.ids for talk in talks])  # no token sees the padding behind it
    inputs = model.trace(ids, inputs=linears, spread=True).inputs
    place = torch.arange(ids.shape[1])  # (T,)
    begins = torch.tensor([[talk.answer_start] for talk in talks])  # (B, 1)
    ends = torch.tensor([[len(talk)] for talk in talks])
    places = {
        "chat": place < begins,
        "prompt": place == begins - 1,
        "answer": (begins <= place) & (place < ends),
    }
    return {
        name: {linear: keys[where] for linear, keys in inputs.items()} for name, where in places.items() if where.any()
    }
