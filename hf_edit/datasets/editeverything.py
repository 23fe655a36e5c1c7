"""EditEverything: answers of about 170 words in mathematics, science, code, poetry and news."""

from __future__ import annotations

import os

from hf_edit.datasets.records import Record, read_edits
from hf_edit.edits import Edit, EditSet


def read(path: str | os.PathLike[str], limit: int | None = None) -> EditSet:
    """The edits `question -> answer`.

    A few questions stand twice in the published file, with different answers: the first of each is kept.
    """
    return read_edits(path, _edit, limit)


def _edit(record: Record) -> Edit:
    number = record.number("id")
    return Edit(
        prompt=record.text("question"),
        target=record.text("answer"),
        id=f"editeverything-{number}",
        source=f"EditEverything record {number}, {record.text('category')}",
    )
