"""What changed from one pack to another: edits, method, settings, base, and how far the updates are apart."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hf_edit.compose.adapters import Origin
from hf_edit.compose.conflicts.questions import Question
from hf_edit.edits import Edit, EditSet, question_of
from hf_edit.packs.card import escaped
from hf_edit.packs.manifest import Manifest
from hf_edit.packs.pack import EditPack
from hf_edit.solvers.low_rank import LowRankDelta


@dataclass(frozen=True)
class ChangedEdit:
    """An edit with the same id, or the same question, in both packs that is not the same.

    Args:
        fields: those of the edit that differ.
    """

    before: Edit
    after: Edit
    fields: tuple[str, ...]


@dataclass(frozen=True)
class ModuleChange:
    """One module's update in both packs, in Frobenius norms; 0 where a pack leaves it alone.

    Args:
        difference: of the two updates' difference; None where their shapes differ.
    """

    before: float
    after: float
    difference: float | None

    @property
    def relative(self) -> float | None:
        """The difference relative to the larger of the two updates: 0 for the same, at most 2."""
        larger = max(self.before, self.after)
        return None if self.difference is None else self.difference / larger if larger else 0.0


@dataclass(frozen=True)
class EditsDiff:
    """What changed in what is taught. Edits are paired by id, then by question (case and punctuation aside).

    Args:
        added, removed: edits that only the second, or only the first, set has.
        changed: edits that both have, but not alike.
        unchanged: how many edits are the same.
    """

    added: tuple[Edit, ...]
    removed: tuple[Edit, ...]
    changed: tuple[ChangedEdit, ...]
    unchanged: int

    @classmethod
    def of(cls, before: EditSet, after: EditSet) -> EditsDiff:
        """From one set to another."""
        pairs = dict(_pairs(before, after))
        met = set(pairs.values())
        both = [(before.by_id(old), after.by_id(new)) for old, new in pairs.items()]
        compared = [ChangedEdit(a, b, _different_fields(a.to_json(), b.to_json())) for a, b in both]
        changed = tuple(one for one in compared if one.fields)
        return cls(
            added=tuple(edit for edit in after if edit.id not in met),
            removed=tuple(edit for edit in before if edit.id not in pairs),
            changed=changed,
            unchanged=len(pairs) - len(changed),
        )

    def lines(self) -> Iterator[str]:
        """Of a changelog, in Markdown."""
        for title, edits in (("Added", self.added), ("Removed", self.removed)):
            yield from (f"- {title} {_edit(edit)}: {escaped(edit.target)}" for edit in edits)
        for change in self.changed:
            answer = f": {escaped(change.before.target)} → {escaped(change.after.target)}"
            answer = answer if "target" in change.fields else ""
            yield f"- Changed {_edit(change.after)} ({', '.join(change.fields)}){answer}"


@dataclass(frozen=True)
class PackDiff(EditsDiff):
    """What changed.

    Args:
        settings: dotted name of what differs in the manifests (method, seed, prompt format, base) -> both values;
            None where a pack has none.
        modules: of either pack.
    """

    settings: Mapping[str, tuple[Any, Any]]
    modules: Mapping[str, ModuleChange]

    @property
    def same(self) -> bool:
        """Whether both packs teach the same by the same update."""
        edits = self.added or self.removed or self.changed
        return not edits and not self.settings and all(change.relative == 0 for change in self.modules.values())

    def to_json(self) -> dict[str, Any]:
        """The difference as JSON values."""
        return {
            "same": self.same,
            "added": [edit.to_json() for edit in self.added],
            "removed": [edit.to_json() for edit in self.removed],
            "changed": [
                {"before": c.before.to_json(), "after": c.after.to_json(), "fields": list(c.fields)}
                for c in self.changed
            ],
            "unchanged": self.unchanged,
            "settings": {name: {"before": a, "after": b} for name, (a, b) in self.settings.items()},
            "modules": {name: {**asdict(c), "relative": c.relative} for name, c in self.modules.items()},
        }


def diff(first: EditPack | str | os.PathLike[str], second: EditPack | str | os.PathLike[str]) -> PackDiff:
    """What changed from the first pack to the second; the updates are compared by their factors, never dense.

    Args:
        first, second: packs, their folders or their ids on the Hub.

    Raises:
        PackError: a pack is missing or damaged.
    """
    before, after = map(EditPack.coerce, (first, second))
    edits = EditsDiff.of(before.edits, after.edits)
    return PackDiff(
        **vars(edits),
        settings=dict(_different_settings(_settings(before.manifest), _settings(after.manifest))),
        modules={
            module: _module_change(before.deltas.get(module), after.deltas.get(module))
            for module in sorted(before.deltas.keys() | after.deltas.keys())
        },
    )


def changelog(before: Origin, after: Origin) -> list[str]:
    """Lines of Markdown: what changed from one pack to another in what is taught and in how it was made.

    The updates are not compared, so that nobody needs the factors of both packs.
    """
    (old, was), (new, now) = before, after
    settings = _different_settings(_settings(old), _settings(new))
    made = (f"- Setting {escaped(name)}: {_value(one)} → {_value(other)}" for name, (one, other) in settings)
    return [*EditsDiff.of(was, now).lines(), *made]


def _pairs(before: EditSet, after: EditSet) -> Iterator[tuple[str, str]]:
    """Ids of edits that are one another's; those with a common id first."""
    common = set(before.ids) & set(after.ids)
    yield from ((id, id) for id in before.ids if id in common)
    by_question = {Question.of(edit.prompt).text: edit.id for edit in after if edit.id not in common}
    for edit in before:
        if edit.id not in common and Question.of(edit.prompt).text in by_question:
            yield edit.id, by_question.pop(Question.of(edit.prompt).text)


def _settings(manifest: Manifest) -> dict[str, Any]:
    base = {"id": manifest.base.id, "revision": manifest.base.revision, "fingerprint": manifest.base.fingerprint}
    return {
        "method": {"name": manifest.method.name, "config": manifest.method.config},
        "seed": manifest.seed,
        "prompt_format": asdict(manifest.prompt_format),
        "base": base,
    }


def _different_settings(before: Any, after: Any, name: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    if name == "method" and before["name"] != after["name"]:  # settings of two methods have nothing in common
        yield "method.name", (before["name"], after["name"])
    elif isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted(before.keys() | after.keys()):
            yield from _different_settings(before.get(key), after.get(key), f"{name}.{key}" if name else key)
    elif before != after:
        yield name, (before, after)


def _different_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key)))


def _module_change(before: LowRankDelta | None, after: LowRankDelta | None) -> ModuleChange:
    if before is None or after is None:
        size = (before or after).norm()  # type: ignore[union-attr]
        return ModuleChange(0.0 if before is None else size, 0.0 if after is None else size, size)
    if before.shape != after.shape:
        return ModuleChange(before.norm(), after.norm(), None)
    if torch.equal(before.B, after.B) and torch.equal(before.A, after.A):  # exactly 0, not a cancelled sum
        return ModuleChange(before.norm(), after.norm(), 0.0)
    return ModuleChange(before.norm(), after.norm(), after.minus(before).norm())


def _edit(edit: Edit) -> str:
    return f"{escaped(edit.id)}, {escaped(question_of(edit.prompt))}"


def _value(setting: Any) -> str:
    return escaped(json.dumps(setting))
