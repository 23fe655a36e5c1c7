"""What packs do to each other's edits, measured: every edit asked with its pack alone and with others attached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations

import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_edit.batching import batched
from hf_edit.compose.adapters import adapter_configs
from hf_edit.compose.attach import attach
from hf_edit.compose.conflicts.report import Answered, EditName, EditOutcome, Interference
from hf_edit.compose.structure import Structure
from hf_edit.edits import EditSet
from hf_edit.evaluation.answers import edit_answers
from hf_edit.evaluation.scores import exact
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.packs.pack import EditPack
from hf_edit.progress import Progress
from hf_edit.prompting import Encoded, PromptFormat


SCORED_AT_ONCE = 8


def interference(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    packs: Sequence[EditPack],
    edits: Sequence[EditName],
    progress: Progress,
) -> Interference:
    """Ask every edit with its pack alone, beside each other pack, and with all of them.

    The model is afterwards bit for bit what it was, also when this raises or is interrupted.

    Args:
        packs: made for this very model; adapters that are active on it stay so.
        edits: the names of all edits, pack by pack.

    Raises:
        ComposeError, BaseMismatchError: the packs cannot be attached.
    """
    view = EditableModel.of(model)
    formats = [PromptFormat.of(pack.manifest.prompt_format.name, tokenizer) for pack in packs]
    places = range(len(packs))
    groups = [*((i,) for i in places), *combinations(places, 2), *([tuple(places)] if len(packs) > 2 else [])]
    progress.stage("interference", sum(map(len, groups)))
    answered: dict[tuple[tuple[int, ...], int], list[Answered]] = {}
    for group in groups:
        with attached(model, [packs[i] for i in group]):
            for i in group:
                answered[group, i] = _asked(view, formats[i], packs[i].edits)
                progress.step()
    outcomes: list[EditOutcome] = []
    for i, pack in enumerate(packs):
        for number in range(len(pack.edits)):
            beside = {j: answered[(min(i, j), max(i, j)), i][number] for j in places if j != i}
            alone, together = answered[(i,), i][number], answered[tuple(places), i][number]
            outcomes.append(EditOutcome(edits[len(outcomes)], alone, beside, together))
    return _summary(outcomes, len(packs))


@contextmanager
def attached(model: PreTrainedModel | PeftModel, packs: Sequence[EditPack]) -> Iterator[None]:
    """The model with packs attached beside what is there; afterwards its very structure from before."""
    before = Structure(model)
    try:
        for number, pack in enumerate(packs):
            name = f"asked_{number}"
            while name in adapter_configs(model):
                name += "_"
            attach(model, pack, name, verify=False)
        yield
    finally:
        before.restore()


def _asked(view: EditableModel, prompts: PromptFormat, edits: EditSet) -> list[Answered]:
    """What the model as it stands makes of these edits."""
    texts = [prompts.encode(edit.prompt, edit.target) for edit in edits]
    answers = edit_answers(view.model, prompts, edits)
    return [
        Answered(exact(answer, edit.target), loss, answer)
        for edit, answer, loss in zip(edits, answers, _losses(view, texts), strict=True)
    ]


def _losses(view: EditableModel, texts: Sequence[Encoded]) -> Iterator[float]:
    """Mean negative log likelihood of each text's answer, in order."""
    with borrowed(view.model), torch.no_grad():
        for part in batched(texts, SCORED_AT_ONCE):
            ids, mask = view.ids([text.ids for text in part])
            where = torch.zeros_like(ids, dtype=torch.bool)
            for row, text in enumerate(part):
                where[row, text.answer_start - 1 : len(text) - 1] = True
            logits = view.logits_at(ids, where, mask=mask)
            counts = [len(text.answer_ids) for text in part]
            labels = torch.tensor([token for text in part for token in text.answer_ids], device=logits.device)
            for loss in F.cross_entropy(logits.float(), labels, reduction="none").split(counts):
                yield float(loss.mean())


def _summary(outcomes: Sequence[EditOutcome], count: int) -> Interference:
    def share(right: Sequence[bool]) -> float | None:
        return sum(right) / len(right) if right else None

    kept: list[tuple[float | None, ...]] = []
    together: list[float | None] = []
    for i in range(count):
        own = [outcome for outcome in outcomes if outcome.edit.pack == i]
        right = [outcome for outcome in own if outcome.alone.right]
        kept.append(
            tuple(
                share([o.alone.right for o in own]) if i == j else share([o.beside[j].right for o in right])
                for j in range(count)
            )
        )
        together.append(share([outcome.together.right for outcome in right]))
    return Interference(tuple(kept), tuple(together), tuple(outcomes))
