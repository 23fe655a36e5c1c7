"""Packs combined and taken apart by solving: `stack` and `revert`.

Every edit is two things per linear: its keys, which are the inputs along its own text, and the values that its pack
adds to the outputs there. A combined pack is one least-squares solve over the keys and values of all edits, against
the second moment of everything else; a reverted edit is one whose question is to get nothing. No step is optimised,
and the result does not depend on the order or the grouping of the packs, because a combined pack keeps each edit's
values as its own pack gave them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_edit.compose.adapters import Pack, name_of, pack_for
from hf_edit.compose.asked import Taught, taught_by
from hf_edit.compose.config import CombineConfig
from hf_edit.compose.conflicts.report import names_of
from hf_edit.compose.union import left_out, union
from hf_edit.edits import Edit, EditSet
from hf_edit.errors import ComposeError, HfEditWarning
from hf_edit.methods.joining.asked import keys_of
from hf_edit.methods.joining.update import Join, Joined, still_said
from hf_edit.methods.training.outcome import told_right, warn_of_missed
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.models.generation import own_answers
from hf_edit.packs.pack import EditPack
from hf_edit.progress import Progress, Silent
from hf_edit.solvers.low_rank import LowRankDelta, summed
from hf_edit.statistics.preserved import Preserved


TAUGHT_WEIGHT = 10.0
"""With which nothing is to change along a reverted edit's taught answer, or the smaller one of the base's own answers;
an edit's own keys weigh 1."""
REVERTED_WEIGHT, HEAVIER, LIGHTER = 10.0, (100.0, 1000.0), (1.0, 0.1, 0.0)
"""Along the base's own answers to reverted questions, unless the config names one: the first that is tried; then those
beyond it until all of these are back, or, where other edits are lost by it, those below until none is."""
DISTURBED = 0.3
"""Share of what an edit's own pack moves along its text, beyond which other packs' doing there is worth a warning."""


def stack(
    packs: Pack | Iterable[Pack],
    *,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    mode: Literal["solve", "add"] = "solve",
    names: Sequence[str] | None = None,
    prefer: str | int | None = None,
    on_conflict: Literal["warn", "error"] = "warn",
    config: CombineConfig | None = None,
    progress: Progress | None = None,
) -> EditPack:
    """One pack that teaches what several teach.

    Args:
        packs: packs, their folders or ids on the Hub, of one base and one prompt format.
        model: their base, without them. Only read.
        tokenizer: its tokenizer.
        mode: `solve` gives every edit what its own pack gave it, and is the same in any order and grouping; `add` is
            the exact sum of the updates, in which packs disturb each other.
        names: of the packs, for `prefer`; by default those of their folders or ids, or `pack 1`, `pack 2`, ....
        prefer: whose answer stays where packs answer a question differently, also in other words: `order`: that of
            the pack given first; `newest`: of the one given last, as packs hold no dates; or of the pack of this name,
            or at this place, from 0. The others' are left out of the solve.
        on_conflict: what becomes of such questions without `prefer`: a warning, or an error. Two answers to the very
            same prompt are always an error then.
        config: settings of the solve; none: its defaults.
        progress: who is told how far it is.

    Returns:
        A pack whose parents are the given ones. An edit that several of them teach with the same answer is taken once,
        from the pack that moves least for it; ids that two different edits share get a suffix.

    Raises:
        PackError, BaseMismatchError: a pack is not sound, or `model` is not its base.
        ComposeError: no packs, packs of two prompt formats, two answers to one question, or names or a preference
            that do not fit the packs.
        ConfigError: the tokenizer writes prompts otherwise than the packs'.

    Warns:
        HfEditWarning: questions that the packs answer differently; edits that are not answered word for word after the
            solve; a sum in which packs disturb each other.
    """
    for what, value, known in (("mode", mode, ("solve", "add")), ("on_conflict", on_conflict, ("warn", "error"))):
        if value not in known:
            raise ComposeError(f"There is no {what} {value!r}.", f"Use {' or '.join(known)}.")
    named = _listed(packs)
    given = [pack_for(model, pack) for pack in named]
    labels = names_of(len(given), names or [name_of(pack, i) for i, pack in enumerate(named)])
    gone = left_out([pack.edits for pack in given], labels, prefer, on_conflict)
    if mode == "add" and any(gone):
        raise ComposeError(
            "A sum cannot leave edits out, and the packs answer some questions differently.",
            "Use mode solve, or revert the edits in their packs.",
        )
    digests = [pack.manifest.identity() for pack in given]
    if mode == "add" and len(set(digests)) < len(digests):
        raise ComposeError("The same pack is given twice, and a sum would change the model twice.", "Name each once.")
    stacking = _Combination(model, tokenizer, given, config or CombineConfig(), progress or Silent())
    return stacking.sum() if mode == "add" else stacking.solved(gone)


def revert(
    pack: Pack,
    ids: str | Iterable[str],
    *,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    config: CombineConfig | None = None,
    progress: Progress | None = None,
) -> EditPack:
    """The pack without some of its edits: their questions get the base's own answers again, the others stay.

    One solve over the edits that stay, in which the reverted ones' questions are to get nothing, neither along the
    base's own answers nor along those that were taught, as the base runs over them.

    Args:
        ids: of the edits to take back.
        model, tokenizer, config, progress: as for `stack`.

    Raises:
        PackError, BaseMismatchError: the pack is not sound, or `model` is not its base.
        ComposeError: an id that is not in the pack, or none would be left.
        ConfigError: the tokenizer writes prompts otherwise than the pack's.
    """
    pack = pack_for(model, pack)
    gone = frozenset([ids] if isinstance(ids, str) else ids)
    unknown = sorted(gone - set(pack.edits.ids))
    if unknown:
        raise ComposeError(f"The pack has no edit {unknown[0]!r}.", "`hf-edit inspect` lists the ids of a pack.")
    if not gone:
        raise ComposeError("No id to revert was given.", "Name at least one edit of the pack.")
    if len(gone) == len(pack.edits):
        raise ComposeError("All edits of the pack would be reverted.", "Detach the pack, or delete it.")
    combination = _Combination(model, tokenizer, [pack], config or CombineConfig(), progress or Silent())
    return combination.solved([gone], [edit for edit in pack.edits if edit.id in gone])


class _Combination:
    """What a combination needs of base and packs, looked up once."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        packs: Sequence[EditPack],
        config: CombineConfig,
        progress: Progress,
    ) -> None:
        self.model, self.packs, self.config, self.progress = model, packs, config, progress
        _check_formats(packs)
        self.prompts = [pack.prompts(tokenizer) for pack in packs][0]
        self.view = EditableModel.of(model)
        self.linears = self.view.linears_named({name for pack in packs for name in pack.deltas})

    def solved(self, gone: Sequence[frozenset[str]], reverted: Sequence[Edit] = ()) -> EditPack:
        """The pack of one solve over all edits.

        Args:
            gone: per pack, ids of edits that take no part.
            reverted: those whose questions are to get the base's own answers again.
        """
        config, view = self.config, self.view
        with borrowed(view.model):
            preserve = Preserved(view, self.prompts, config.statistics, config.seed, self.progress)
            join = Join(view, self.linears, preserve, config)
            kept = union(self._taught(gone))
            for one in kept:
                join.add(one.asked)
            self.progress.stage("solve", 1)
            stay = [one.edit.id for one in kept]
            joined, own = self._reverting(join, reverted, stay) if reverted else (join.solved(), {})
            self.progress.step()
            right = {one.edit.id: ok for one, ok in zip(kept, joined.right, strict=True)}
            warn_of_missed(
                right, "are not answered word for word after the solve", "Polish the pack, or raise its rank."
            )
            receipt: dict[str, Any] = {"preservation": joined.preservation, "lost_to_rank": joined.lost_to_rank}
            receipt |= {"right": right, **({"own_text": own} if reverted else {})}
            return self._pack("revert" if reverted else "stack", kept, joined.deltas, receipt)

    def _reverting(self, join: Join, edits: Sequence[Edit], stay: Sequence[str]) -> tuple[Joined, dict[str, bool]]:
        """The solve that takes edits back, and by id whether the base's own text is given again, word for word.

        Args:
            stay: ids of the edits that are joined.

        Taught answers are held with a weight that makes them unlikely; the base's own with the smallest of the weights
        that brings all of them back. Other edits come first: a weight that loses one more of them is not taken.
        """
        config, prompts = self.config, self.prompts
        questions = [edit.prompt for edit in edits]
        own = join.entering(
            own_answers(self.view.model, prompts, questions, config.reverted_tokens, config.statistics.batch)
        )
        taught = join.entering([prompts.encode(edit.prompt, edit.target) for edit in edits])
        said = join.margins(own, {})
        before = told_right(self.packs[0].manifest.receipt, stay)
        worked = sum(before[id] if id in before else alone for id, alone in zip(stay, join.right_alone(), strict=True))

        def tried(weight: float) -> tuple[Joined, list[bool]]:
            join.hold_along(taught, min(weight, TAUGHT_WEIGHT))
            join.hold_along(own, weight)
            joined = join.solved()
            now = join.margins(own, joined.deltas)
            return joined, [still_said(*each) for each in zip(now, said, strict=True)]

        def kept(found: tuple[Joined, list[bool]]) -> int:
            return sum(found[0].right)

        best = tried(REVERTED_WEIGHT if config.reverted_weight is None else config.reverted_weight)
        if config.reverted_weight is None:
            loses = kept(best) < worked
            for weight in LIGHTER if loses else HEAVIER:
                if kept(best) >= worked if loses else all(best[1]):
                    break
                best = max(best, tried(weight), key=lambda found: (kept(found), sum(found[1])))
        return best[0], {edit.id: ok for edit, ok in zip(edits, best[1], strict=True)}

    def sum(self) -> EditPack:
        """The pack of the exact sum."""
        with borrowed(self.view.model):
            taught = union(self._taught())
            deltas = summed([pack.deltas for pack in self.packs])
            keys = (keys_of(self.view, one.asked, self.linears, self.linears[0].layer) for one in taught)
            disturbance = _disturbance(taught, keys, deltas)
            return self._pack("stack", taught, deltas, {"disturbance": disturbance}, {"mode": "add"})

    def _taught(self, gone: Sequence[frozenset[str]] | None = None) -> list[Taught]:
        without = gone or [frozenset()] * len(self.packs)
        self.progress.stage("values", sum(len(pack.edits) for pack in self.packs) - sum(map(len, without)))
        taught = []
        for pack, left in zip(self.packs, without, strict=True):
            for one in taught_by(self.view, self.prompts, pack, self.linears, left):
                taught.append(one)
                self.progress.step()
        return taught

    def _pack(
        self,
        method: str,
        taught: Sequence[Taught],
        deltas: Mapping[str, LowRankDelta],
        receipt: Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
    ) -> EditPack:
        return EditPack.build(
            self.model,
            deltas=deltas,
            edits=EditSet(one.edit for one in taught),
            source=[{name: kv for name, kv in one.asked.source().items() if name in deltas} for one in taught],
            method=method,
            config=self.config.to_json() if config is None else config,
            seed=self.config.seed,
            prompt_format=self.prompts,
            receipt=receipt,
            parents=self.packs,
        )


def _listed(packs: Pack | Iterable[Pack]) -> list[Pack]:
    given = [packs] if isinstance(packs, (str, os.PathLike, EditPack)) else list(packs)
    if not given:
        raise ComposeError("No pack to stack was given.", "Give at least one.")
    return given


def _check_formats(packs: Sequence[EditPack]) -> None:
    """Refuse packs that were taught in different prompt formats."""
    formats = sorted({pack.manifest.prompt_format.name for pack in packs})
    if len(formats) > 1:
        raise ComposeError(
            f"The packs were taught in the prompt formats {' and '.join(formats)}.",
            "Stack packs of one format; packs of different formats can be attached side by side.",
        )


def _disturbance(
    taught: Sequence[Taught], keys: Iterable[Mapping[str, Tensor]], deltas: Mapping[str, LowRankDelta]
) -> dict[str, float]:
    """Edit id -> what a sum adds along the edit's text beyond its own values, relative to these.

    Args:
        keys: of each edit, by linear, (T - 1, d_in).

    Warns:
        HfEditWarning: names the worst, where packs disturb each other.
    """
    found: dict[str, float] = {}
    for one, inputs in zip(taught, keys, strict=True):
        own = beside = 0.0
        for name, delta in deltas.items():
            moved = delta.to(device=inputs[name].device).outputs(inputs[name].to(delta.A.dtype))  # (T - 1, d_out)
            values = one.asked.values.get(name, torch.zeros_like(moved))
            own += float(values.square().sum())
            beside += float((moved - values).square().sum())
        found[one.edit.id] = round((beside / own) ** 0.5, 4) if own else 0.0
    worst = max(found, key=lambda id: found[id])
    if found[worst] > DISTURBED:
        warnings.warn(
            f"Other packs move {sum(share > DISTURBED for share in found.values())} of {len(found)} edits by more "
            f"than {DISTURBED:.0%} of what their own does, {worst!r} by {found[worst]:.0%}: expect them to be lost "
            "in the sum. The mode solve keeps them.",
            HfEditWarning,
            stacklevel=4,
        )
    return found
