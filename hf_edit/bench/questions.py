"""The edits of a data set with all that is asked about them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from hf_edit.batching import spread
from hf_edit.datasets.formats import read_cases
from hf_edit.datasets.records import Case
from hf_edit.edits import Edit, EditSet, Prompt, prompt_key, question_of
from hf_edit.errors import ConfigError
from hf_edit.evaluation.config import Material
from hf_edit.validation import read_text


if TYPE_CHECKING:
    from hf_edit.bench.config import Data


_RANGE = re.compile(r"(\d+)(?::(\d+))?", re.ASCII)


@dataclass(frozen=True)
class Questions:
    """What one data set gives.

    Args:
        facts: edit id -> what the edit teaches, told in words.
    """

    edits: EditSet
    material: Material
    facts: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        """sha256 of the edits and of all that is asked beside them."""
        material = self.material
        hops = {id: [[str(hop.prompt), hop.accepted] for hop in some] for id, some in material.hops.items()}
        own = {
            id: sorted((answer, tuple(some)) for answer, some in aliases.items())
            for id, aliases in material.own_aliases.items()
        }
        parts = (
            self.edits.dumps(),
            sorted(material.old_answers.items()),
            sorted((answer, tuple(some)) for answer, some in material.aliases.items()),
            sorted(own.items()),
            sorted(hops.items()),
            [prompt_key(prompt) for prompt in material.strangers],
            material.text,
            material.layout,
            sorted(self.facts.items()),
        )
        return sha256(repr(parts).encode()).hexdigest()


def read_questions(data: Data, text: str | None, folder: Path | None) -> Questions:
    """Read the files of a data set.

    Args:
        text: running text for perplexity.
        folder: of data.

    Raises:
        ConfigError: a file is not there, or no record is chosen.
        InvalidEditError: a file cannot be read as edits.
    """
    everything = read_cases(found(data.file, folder), data.layout)
    cases = [everything[i] for i in indices(data.records, len(everything))]
    if not cases:
        raise ConfigError(
            f"No record of {data.records!r} is among the {len(everything)} of {data.name}.", "Choose others."
        )
    material = replace(Material.of(cases, data.layout), strangers=_strangers(data, cases, folder), text=text)
    return Questions(EditSet(case.edit for case in cases), material, {case.edit.id: told(case) for case in cases})


def told(case: Case) -> str:
    """The fact in words: as the data tells it, else the question with its answer."""
    if case.fact is not None:
        return case.fact
    edit = case.edit
    answer = f"{question_of(edit.prompt).strip()} {edit.target.strip()}"
    return answer if answer.endswith((".", "!", "?")) else f"{answer}."


def running_text(name: str | None, folder: Path | None) -> str | None:
    """The text of that file; None of no name."""
    return None if name is None else read_text(found(name, folder))


def found(name: str, folder: Path | None) -> Path:
    """A file of data: in the folder if one is given, else in $HF_EDIT_DATA, else where one stands."""
    places = [folder, os.environ.get("HF_EDIT_DATA"), "."]
    paths = [Path(place, name) for place in places if place]
    for path in paths:
        if path.is_file():
            return path
    raise ConfigError(
        f"There is no file {name} in {', '.join(str(path.parent) for path in paths)}.",
        "Name the folder of the data with --data-folder, or in the variable HF_EDIT_DATA.",
    )


def indices(spec: str, size: int) -> list[int]:
    """`100:112`, `3,40,120` or a mix of both, as indices below `size`, each once; all of them of no spec.

    Raises:
        ConfigError: it cannot be read so.
    """
    if not spec:
        return list(range(size))
    found: dict[int, None] = {}
    for part in spec.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ConfigError(f"The records {spec!r} are no ranges.", "Write them as 0:100, or 3,40,120.")
        first, last = int(match[1]), int(match[2] or int(match[1]) + 1)
        found |= dict.fromkeys(range(first, min(last, size)))
    return list(found)


def _strangers(data: Data, cases: Sequence[Case], folder: Path | None) -> list[Prompt]:
    """Questions of the same kind about what is not edited, evenly spread over their file."""
    if data.strangers is None:
        return []
    subjects = {case.edit.subject for case in cases} - {None}
    edited = {prompt_key(case.edit.prompt) for case in cases}

    def strange(edit: Edit) -> bool:
        return edit.subject not in subjects and prompt_key(edit.prompt) not in edited

    others = [case.edit for case in read_cases(found(data.strangers, folder), data.layout) if strange(case.edit)]
    return [edit.prompt for edit in spread(others, data.stranger_count)]
