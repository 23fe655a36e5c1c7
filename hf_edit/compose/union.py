"""The edits of several packs as one set: which give way, which are the same, and what they are called."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Literal

from hf_edit.compose.asked import Taught
from hf_edit.compose.conflicts import resolve, textual_conflicts
from hf_edit.edits import MAX_ID_LENGTH, Edit, EditSet, prompt_key
from hf_edit.errors import ComposeError, HfEditWarning
from hf_edit.validation import shown


SUFFIX = 9
"""Characters of what is put behind an id that several edits have."""


def left_out(
    sets: Sequence[EditSet],
    names: Sequence[str],
    prefer: str | int | None,
    on_conflict: Literal["warn", "error"],
) -> tuple[frozenset[str], ...]:
    """Per set, the ids of edits that give way to another set's; arguments as for `stack`.

    Raises:
        ComposeError: two answers to one question, with `on_conflict` error; or no set is the preferred one.

    Warns:
        HfEditWarning: two answers to one question, otherwise.
    """
    if prefer is not None:
        return resolve(sets, prefer, names)
    found = [finding for finding in textual_conflicts(sets, names) if finding.conflict]
    if found:
        message = f"The packs answer {len(found)} question(s) differently. {found[0].explanation}"
        remedy = "Say which pack goes before with prefer=, or revert one of the two edits in its pack."
        if on_conflict == "error":
            raise ComposeError(message, remedy)
        warnings.warn(f"{message} {remedy}", HfEditWarning, stacklevel=4)
    return tuple(frozenset() for _ in sets)


def union(taught: Sequence[Taught]) -> list[Taught]:
    """Each edit once, under ids that no two share.

    Nothing here depends on the order or grouping of the packs but the order of the result: an edit that several packs
    teach is taken from the pack that moves the least for it, with its id there. Edits that share an id all get a
    suffix made of what they teach, and keep it as long as they are stacked with others of that id.

    Raises:
        ComposeError: two answers to one prompt.
    """
    by_prompt: dict[str, Taught] = {}
    for one in taught:
        key = prompt_key(one.edit.prompt)
        other = by_prompt.get(key)
        if other is not None and other.edit.target != one.edit.target:
            raise ComposeError(
                f"The edits {other.edit.id!r} and {one.edit.id!r} give two answers to one prompt: "
                f"{shown(other.edit.target)} and {shown(one.edit.target)}.",
                "Say which pack goes before with prefer=, or revert one of the two in its pack.",
            )
        if other is None or (one.asked.effort(), one.edit.id) < (other.asked.effort(), other.edit.id):
            by_prompt[key] = one
    times = Counter(_stem(one.edit) for one in by_prompt.values())
    found = [
        one if times[_stem(one.edit)] == 1 else replace(one, edit=replace(one.edit, id=_suffixed(one.edit)))
        for one in by_prompt.values()
    ]
    for id, count in Counter(one.edit.id for one in found).items():
        if count > 1:
            raise ComposeError(f"The id {id!r} of an edit would be given to another.", "Give the edit another id.")
    return found


def _suffixed(edit: Edit) -> str:
    """An id that follows from what the edit teaches too."""
    return _stem(edit) + _suffix(edit)


def _stem(edit: Edit) -> str:
    """The edit's id without such a suffix."""
    return edit.id.removesuffix(_suffix(edit))[: MAX_ID_LENGTH - SUFFIX]


def _suffix(edit: Edit) -> str:
    content = sha256(f"{prompt_key(edit.prompt)}\n{edit.target}".encode()).hexdigest()
    return f"-{content[: SUFFIX - 1]}"
