"""Many edits, each polished alone, and one solve that joins them.

Trained together, edits share every step and pay for each other's interference with size. Trained apart, each needs a
dozen steps over its own text; what they then ask of the model is known exactly, and one least-squares solve gives
every one of them what it asked for (`hf_edit.solvers.joint`). The pack of many edits is therefore the stack of their
packs of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_edit.edits import Edit, EditSet
from hf_edit.methods.base import Checkpoints, EditResult, Preservation
from hf_edit.methods.checkpoints import key_of
from hf_edit.methods.joining.asked import Asked, asked_by_factors
from hf_edit.methods.joining.config import JoinSettings
from hf_edit.methods.joining.update import Join
from hf_edit.methods.polish.config import PolishSettings
from hf_edit.methods.polish.method import Polishing
from hf_edit.methods.training.answering import answers
from hf_edit.methods.training.outcome import warn_of_missed
from hf_edit.methods.training.texts import Text, prepared
from hf_edit.models.editable import EditableModel
from hf_edit.processes import Processes
from hf_edit.progress import Progress, Silent
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta


def polished_apart(
    model: EditableModel,
    prompts: PromptFormat,
    edits: EditSet,
    preserve: Preservation,
    settings: PolishSettings,
    joining: JoinSettings,
    recipe: Mapping[str, Any],
    seed: int,
    checkpoints: Checkpoints,
    progress: Progress,
) -> EditResult:
    """The joined update, with what each edit asks of every token of its text as its source.

    One edit needs no joining: its update is what training gave, and says itself what it asks for.

    Args:
        settings: how each edit is polished.
        joining: how they are joined.
        recipe: all settings, as JSON, by which finished edits are found again.

    Warns:
        HfEditWarning: names the edits that are not answered as asked, once joined.
    """
    polishing = Polishing(model, prompts, preserve, settings, seed)
    linears, first = polishing.linears, polishing.first
    texts = prepared(model, [prompts.encode(edit.prompt, edit.target) for edit in edits], first)
    every: list[Asked] = []
    receipt: dict[str, dict[str, Any]] = {}
    deltas: dict[str, LowRankDelta] = {}

    def alone(pair: tuple[Edit, Text]) -> dict[str, Tensor]:
        """The factors of one edit, and how its training went."""
        edit, text = pair
        earlier = [e.ids for e in preserve.earlier]
        key = key_of(edit.to_json(), text.ids.tolist(), text.start, earlier, dict(recipe), polishing.moments_digest)
        kept = checkpoints.load(key)
        if kept is None:
            factors, trained = polishing.optimised(EditSet([edit]), checkpoints, Silent())
            figures = torch.tensor([trained.losses[0], trained.steps, trained.scale], dtype=torch.float64)
            kept = _packed(factors.detached()) | {"figures": figures}
            checkpoints.save(key, kept)
        progress.step(loss=float(kept["figures"][0]))
        return kept

    processes, pairs = Processes.joined(model.device), list(zip(edits, texts, strict=True))
    progress.stage("edits", len(processes.mine(pairs)))
    for (edit, text), kept in zip(pairs, processes.map(alone, pairs), strict=True):
        deltas = {linear.name: _unpacked(kept, linear.name, model.device) for linear in linears}
        loss, steps, scale = kept["figures"].tolist()
        receipt[edit.id] = {"alone": round(loss, 6), "steps": int(steps), "scale": round(scale, 6)}
        every.append(asked_by_factors(model, text, linears, first, deltas))
    if len(edits) > 1:
        join = Join(model, linears, preserve, joining)
        for asked in every:
            join.add(asked)
        deltas = join.solved().deltas
    _note_answers(model, texts, deltas, first, receipt)
    return EditResult(deltas, [asked.source() for asked in every] if len(edits) > 1 else None, receipt)


@torch.no_grad()
def _note_answers(
    model: EditableModel,
    texts: Sequence[Text],
    deltas: Mapping[str, LowRankDelta],
    first: int,
    receipt: dict[str, dict[str, Any]],
) -> None:
    """Put each edit's loss per answer token, and whether greedy decoding gives its answer, into the receipt."""
    for text, (id, figures) in zip(texts, receipt.items(), strict=True):
        losses, margins = answers(model, first, [text], deltas)
        receipt[id] = {"loss": round(float(losses[0]), 6), "right": bool(margins[0] > 0), **figures}
    answered = {id: figures["right"] for id, figures in receipt.items()}
    remedy = "Polish the pack, raise the rank, or raise max_steps of the training."
    warn_of_missed(answered, "are not answered as asked", remedy)


def _packed(deltas: Mapping[str, LowRankDelta]) -> dict[str, Tensor]:
    return {f"{name}.{side}": factor.cpu() for name, d in deltas.items() for side, factor in (("B", d.B), ("A", d.A))}


def _unpacked(kept: Mapping[str, Tensor], name: str, device: torch.device) -> LowRankDelta:
    return LowRankDelta(kept[f"{name}.B"], kept[f"{name}.A"]).to(device=device)
