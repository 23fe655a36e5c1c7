"""FEVER as MEND and MALMEN write it: claims, to be called true or false against what the evidence says."""

from __future__ import annotations

import os

from hf_edit.datasets.records import Record, read_edits
from hf_edit.edits import Edit, EditSet, Probe
from hf_edit.errors import InvalidEditError


VERDICTS = ("false", "true")
"""Of the labels 0 and 1, which the data gives as numbers or as JSON's own constants."""


def read(path: str | os.PathLike[str], limit: int | None = None) -> EditSet:
    """The edits `prompt -> alt`, reworded by `equiv_prompt`; `unrel_prompt` is the locality probe."""
    return read_edits(path, _edit, limit)


def _edit(record: Record) -> Edit:
    return Edit(
        prompt=record.text("prompt"),
        target=_verdict(record, "alt"),
        paraphrases=tuple(record.texts("equiv_prompt")),
        locality=(Probe(record.text("unrel_prompt"), _verdict(record, "unrel_ans")),),
        id=f"fever-{record.index}",
        source=f"FEVER record {record.index}",
    )


def _verdict(record: Record, field: str) -> str:
    label = record[field]
    if isinstance(label, str):
        return record.text(field)
    if label in (0, 1):
        return VERDICTS[int(label)]
    raise InvalidEditError(f"The label {field!r} is {label!r}.", "Use 0 (false), 1 (true) or text.")
