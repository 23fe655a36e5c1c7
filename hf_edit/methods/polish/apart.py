"""Many edits, polished in parts, and one solve that joins them.

Trained together, edits share every step and pay for each other's interference with size. Trained in parts, each needs
few steps over its own texts; what its edits then ask of the model is known exactly, and least squares, repeated where
answers are lost, gives every one of them what it asked for (`hf_edit.methods.joining`). The pack of many edits is
therefore the stack of the packs of its parts.
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
from hf_edit.methods.training.texts import prepared
from hf_edit.models.editable import EditableModel
from hf_edit.processes import Processes
from hf_edit.progress import Progress, Silent
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta


def polished_apart(
    model: EditableModel,
    prompts: PromptFormat,
    parts: Sequence[Sequence[Edit]],
    preserve: Preservation,
    settings: PolishSettings,
    joining: JoinSettings,
    seed: int,
    checkpoints: Checkpoints,
    progress: Progress,
) -> EditResult:
    """The joined update, with what each edit asks of every token of its text as its source.

    Args:
        parts: edits that are polished together.
        settings: how each part is polished.
        joining: how they are joined.
        checkpoints: finished parts are found there again, whichever others there are.
    """
    polishing = Polishing(model, prompts, preserve, settings, seed)
    linears, first = polishing.linears, polishing.first
    earlier = [one.ids for one in preserve.earlier]

    encoded = [[prompts.encode(edit.prompt, edit.target) for edit in part] for part in parts]
    every = EditSet(edit for part in parts for edit in part)

    def trained(place: int) -> dict[str, Tensor]:
        """The factors of one part, and how its training went."""
        part = parts[place]
        key = key_of(
            [edit.to_json() for edit in part],
            [[one.ids, one.answer_start] for one in [*encoded[place], *polishing.rewritten(EditSet(part), every)]],
            earlier,
            settings.to_json(),
            seed,
            polishing.moments_digest,
        )
        kept = checkpoints.load(key)
        if kept is None:
            factors, ended = polishing.optimised(EditSet(part), checkpoints, Silent(), every)
            course = {"steps": torch.tensor(ended.steps), "scale": torch.tensor(ended.scale, dtype=torch.float64)}
            kept = _packed(factors.detached()) | course
            kept["losses"] = torch.tensor(ended.losses, dtype=torch.float64)
            checkpoints.save(key, kept)
        progress.step(len(part), loss=float(kept["losses"].mean()))
        return kept

    processes = Processes.joined(model.device)
    progress.stage("edits", sum(map(len, processes.mine(parts))))
    found = processes.map(trained, range(len(parts)))
    join = Join(model, linears, preserve, joining)
    wanted: list[Asked] = []
    receipt: dict[str, dict[str, Any]] = {}
    for part, asked, kept in zip(parts, encoded, found, strict=True):
        deltas = {linear.name: _unpacked(kept, linear.name, model.device) for linear in linears}
        texts = prepared(model, asked, first)
        for edit, text, loss in zip(part, texts, kept["losses"].tolist(), strict=True):
            wanted.append(asked_by_factors(model, text, linears, first, deltas))
            join.add(wanted[-1])
            receipt[edit.id] = {"apart": round(loss, 6), "steps": int(kept["steps"]), "scale": float(kept["scale"])}
    joined = join.solved()
    solve = {"preservation": joined.preservation, "lost_to_rank": max(joined.lost_to_rank.values(), default=0.0)}
    losses, _ = answers(model, first, [one.text for one in wanted], joined.deltas)
    for figures, loss, right in zip(receipt.values(), losses.tolist(), joined.right, strict=True):
        figures |= {"loss": round(loss, 6), "right": right} | solve
    return EditResult(joined.deltas, [one.source() for one in wanted], receipt)


def _packed(deltas: Mapping[str, LowRankDelta]) -> dict[str, Tensor]:
    return {f"{name}.{side}": factor.cpu() for name, d in deltas.items() for side, factor in (("B", d.B), ("A", d.A))}


def _unpacked(kept: Mapping[str, Tensor], name: str, device: torch.device) -> LowRankDelta:
    return LowRankDelta(kept[f"{name}.B"], kept[f"{name}.A"]).to(device=device)
