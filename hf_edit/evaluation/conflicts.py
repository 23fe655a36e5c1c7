"""Where packs contradict each other or stand in each other's way: texts, factors and, with a model, measured."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_edit.compose.adapters import name_of
from hf_edit.compose.conflicts.keys import (
    Keys,
    alike_keys,
    content_cosines,
    key_overlaps,
    keys_of,
    nearest_edit,
    range_overlaps,
)
from hf_edit.compose.conflicts.report import (
    Answered,
    ConflictReport,
    EditName,
    Finding,
    Interference,
    names_of,
)
from hf_edit.compose.conflicts.textual import textual_conflicts
from hf_edit.errors import ComposeError, ConfigError
from hf_edit.evaluation.interference import interference
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.packs.pack import EditPack
from hf_edit.progress import Progress, Silent
from hf_edit.prompting import PromptFormat
from hf_edit.validation import shown


PackLike: TypeAlias = EditPack | str | os.PathLike[str]


def conflicts(
    *packs: PackLike | Iterable[PackLike],
    names: Sequence[str] | None = None,
    model: PreTrainedModel | PeftModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress | None = None,
) -> ConflictReport:
    """Compare packs: the same question with different answers, inputs that both change, edits that are lost together.

    Args:
        packs: two or more packs, folders or ids on the Hub, one by one or in a list.
        names: of the packs, for the report; by default those of their folders, or `pack 1`, `pack 2`, ....
        model, tokenizer: the packs' base, if the keys are to be compared and the interference measured. Every edit is
            asked with its pack alone, beside each other pack, and with all; the model is afterwards as it was.
        progress: who is told how far it is.

    Raises:
        ComposeError: fewer than two packs, or another number of names.
        ConfigError: a model without a tokenizer, or the other way round.
        PackError, BaseMismatchError: a pack is damaged, or made for another model.
    """
    given = [pack for item in packs for pack in ([item] if isinstance(item, (EditPack, str, os.PathLike)) else item)]
    if len(given) < 2:
        raise ComposeError(f"Conflicts are between packs, and {len(given)} is given.", "Give two packs or more.")
    if (model is None) != (tokenizer is None):
        raise ConfigError("The interference needs a model and its tokenizer.", "Give both, or neither.")
    labels = names_of(len(given), names or [name_of(pack, i) for i, pack in enumerate(given)])
    opened = [EditPack.coerce(pack) for pack in given]
    edits = tuple(EditName(i, labels[i], edit.id) for i, pack in enumerate(opened) for edit in pack.edits)
    findings = textual_conflicts([pack.edits for pack in opened], labels)
    ranges = tuple(range_overlaps([pack.deltas for pack in opened]))
    if model is None or tokenizer is None:
        return ConflictReport(labels, tuple(findings), ranges, edits)

    for pack in opened:
        pack.verify(model)
    listener = progress or Silent()
    keys = _keys(model, tokenizer, opened, listener)
    cosines = content_cosines(keys)
    measured = interference(model, tokenizer, opened, edits, listener)
    findings += [*alike_keys(cosines, edits, findings), *_lost(measured, edits, cosines, labels)]
    findings.sort(key=lambda f: (not f.conflict, -f.score, f.first, f.second))
    overlaps = tuple(key_overlaps([pack.deltas for pack in opened], keys))
    return ConflictReport(labels, tuple(findings), ranges, edits, overlaps, cosines, measured)


def _keys(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    packs: Sequence[EditPack],
    progress: Progress,
) -> list[Keys]:
    view = EditableModel.of(model)
    changed = {module for pack in packs for module in pack.deltas}
    linears = view.linears_named(changed)
    progress.stage("keys", len(packs))
    found = []
    with borrowed(view.model):
        for pack in packs:
            prompts = PromptFormat.of(pack.manifest.prompt_format.name, tokenizer)
            found.append(keys_of(view, linears, prompts, pack.edits))
            progress.step()
    return found


def _lost(
    measured: Interference, edits: Sequence[EditName], cosines: Tensor, labels: Sequence[str]
) -> Iterator[Finding]:
    """Every edit that is right alone and not beside another pack, or only not beside all of them."""
    for row, outcome in enumerate(measured.edits):
        if not outcome.alone.right:
            continue
        losing: dict[tuple[int, ...], Answered] = {
            (j,): answered for j, answered in outcome.beside.items() if not answered.right
        }
        if not losing and not outcome.together.right:
            losing = {tuple(outcome.beside): outcome.together}
        for others, answered in losing.items():
            nearest, cosine = nearest_edit(cosines, edits, row, others)
            named = " and ".join(labels[j] for j in others)
            yield Finding(
                "interference",
                edits[row],
                nearest,
                _share_lost(outcome.alone, answered),
                f"Right with {labels[edits[row].pack]} alone; with {named} attached too the answer is "
                f"{shown(answered.answer)}. Named is the edit there with the most alike keys (cosine {cosine:.2f}).",
            )


def _share_lost(alone: Answered, beside: Answered) -> float:
    """How much of the target's probability per token is gone."""
    return 1 - math.exp(min(0.0, alone.loss - beside.loss))
