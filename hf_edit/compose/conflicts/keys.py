"""How far packs act on the same inputs: ranges of their factors, and the keys of their questions on the base."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_edit.batching import batched
from hf_edit.compose.conflicts.lexicon import EMPTY
from hf_edit.compose.conflicts.report import EditName, Finding, KeyOverlap, RangeOverlap
from hf_edit.edits import EditSet, Prompt, question_of
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta


ALIKE = 0.95
"""Questions whose content keys have this cosine, in the mean over the modules, are worth naming."""
TRACED_AT_ONCE = 16

Deltas = Mapping[str, LowRankDelta]


@dataclass(frozen=True, eq=False)
class Keys:
    """Inputs of linears for a set of prompts, by linear name: (n, d_in), fp32 on the CPU.

    Args:
        last: at each prompt's last token.
        content: the mean over the tokens at which the question's content words end.
    """

    last: Mapping[str, Tensor]
    content: Mapping[str, Tensor]


def range_overlaps(packs: Sequence[Deltas]) -> Iterator[RangeOverlap]:
    """Per pair of packs and module that both change, what they share; modules of different widths are left out."""
    for (i, one), (j, other) in combinations(enumerate(packs), 2):
        for module in sorted(one.keys() & other.keys()):
            if one[module].shape == other[module].shape:
                yield _range_overlap(module, i, j, one[module], other[module])


def keys_of(model: EditableModel, linears: Sequence[EditableLinear], prompts: PromptFormat, edits: EditSet) -> Keys:
    """The keys of the edits' prompts, by one forward of the model as it stands.

    Raises:
        ConfigError: the format cannot put a prompt, or the tokenizer does not tell where words are.
    """
    last: dict[str, list[Tensor]] = {linear.name: [] for linear in linears}
    content: dict[str, list[Tensor]] = {linear.name: [] for linear in linears}
    for part in batched(edits, TRACED_AT_ONCE):
        rows = [prompts.prompt_ids(edit.prompt) for edit in part]
        ids, mask = model.ids(rows)
        inputs = model.trace(ids, mask, inputs=linears).inputs
        for row, (edit, tokens) in enumerate(zip(part, rows, strict=True)):
            places = _content_places(prompts, edit.prompt) or [len(tokens) - 1]
            for name, keys in inputs.items():
                last[name].append(keys[row, len(tokens) - 1].float().cpu())
                content[name].append(keys[row, places].float().mean(dim=0).cpu())
    return Keys({n: torch.stack(k) for n, k in last.items()}, {n: torch.stack(k) for n, k in content.items()})


def key_overlaps(packs: Sequence[Deltas], keys: Sequence[Keys]) -> Iterator[KeyOverlap]:
    """Per pair of packs and module that either changes, how alike the keys of their questions are."""
    for (i, one), (j, other) in combinations(enumerate(packs), 2):
        for module in sorted(one.keys() | other.keys()):
            crosstalk = None
            if module in one and module in other:
                k, k2 = keys[i].last[module], keys[j].last[module]
                crosstalk = (
                    _ratio(_change(other[module], k), _change(one[module], k)),
                    _ratio(_change(one[module], k2), _change(other[module], k2)),
                )
            last, content = (
                _mean_and_largest(a[module], b[module])
                for a, b in ((keys[i].last, keys[j].last), (keys[i].content, keys[j].content))
            )
            yield KeyOverlap(module, i, j, last, content, crosstalk)


def content_cosines(keys: Sequence[Keys]) -> Tensor:
    """(n, n): cosines between the content keys of all edits of all packs, mean over the modules."""
    total = torch.zeros(())
    for module in keys[0].content:
        units = F.normalize(torch.cat([k.content[module] for k in keys]), dim=1)
        total = total + units @ units.T
    return total / len(keys[0].content)


def alike_keys(cosines: Tensor, edits: Sequence[EditName], known: Iterable[Finding]) -> list[Finding]:
    """The nearest edit of another pack for each edit, where it is nearer than `ALIKE` and the pair is not known."""
    seen = {frozenset((finding.first, finding.second)) for finding in known}
    found = []
    for row in range(len(edits)):
        nearest, cosine = nearest_edit(cosines, edits, row, {e.pack for e in edits} - {edits[row].pack})
        pair = frozenset((edits[row], nearest))
        if cosine >= ALIKE and pair not in seen:
            seen.add(pair)
            first, second = sorted(pair)
            text = f"The changed layers see nearly the same inputs for both questions (cosine {cosine:.2f})."
            found.append(Finding("keys", first, second, cosine, text))
    return found


def nearest_edit(cosines: Tensor, edits: Sequence[EditName], row: int, packs: Iterable[int]) -> tuple[EditName, float]:
    """Of the edits of these packs, the one whose content keys are nearest to those of edit number `row`."""
    among = [i for i, edit in enumerate(edits) if edit.pack in set(packs)]
    values = cosines[row, among]
    place = int(values.argmax())
    return edits[among[place]], min(1.0, float(values[place]))


def _range_overlap(module: str, i: int, j: int, one: LowRankDelta, other: LowRankDelta) -> RangeOverlap:
    mine, its = _directions(one), _directions(other)  # (p, d_in), (q, d_in)
    fewer, more = sorted((len(mine), len(its)))
    shared = float((mine @ its.T).square().sum()) / fewer if fewer else 0.0
    crosstalk = (_ratio(_change(other, mine), one.norm()), _ratio(_change(one, its), other.norm()))
    return RangeOverlap(module, i, j, min(1.0, shared), more / one.shape[1], crosstalk)


def _directions(delta: LowRankDelta) -> Tensor:
    """(p, d_in): an orthonormal basis of what the delta reads; columns of B that are zero count for nothing."""
    right = torch.linalg.qr(delta.B.double()).R @ delta.A.double()  # (min(d_out, r), d_in), the same row space as B A
    _, values, rows = torch.linalg.svd(right, full_matrices=False)
    least = values[:1] * max(right.shape) * torch.finfo(delta.A.dtype).eps
    return rows[(values > least) & (values > 0)]


def _change(delta: LowRankDelta, inputs: Tensor) -> float:
    """Frobenius norm of what the delta adds to the outputs for inputs (n, d_in)."""
    return float(delta.to(torch.float64).outputs(inputs.double()).norm())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _mean_and_largest(one: Tensor, other: Tensor) -> tuple[float, float]:
    cosines = F.normalize(one, dim=1) @ F.normalize(other, dim=1).T
    return float(cosines.mean()), float(cosines.max())


def _content_places(prompts: PromptFormat, prompt: Prompt) -> list[int]:
    """Where in the prompt's ids its content words end."""
    words = {word for word in re.findall(r"\w+", question_of(prompt)) if word.lower() not in EMPTY}
    places = {prompts.last_token_of(prompt, word) for word in words}
    return sorted(place for place in places if place is not None)
