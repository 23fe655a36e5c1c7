"""MQuAKE-CF with AKEW's long-form facts: a false fact told in a paragraph, and questions several hops away."""

from __future__ import annotations

import os

from hf_edit.datasets.records import Record, read_edits
from hf_edit.edits import Edit, EditSet, Probe
from hf_edit.errors import InvalidEditError


def read(path: str | os.PathLike[str], limit: int | None = None) -> EditSet:
    """The edits of each record's first rewrite, `question -> fact_new_uns`.

    The three multi-hop questions become portability probes only where the record has a single rewrite: with more,
    their answer follows from all rewrites together and the first alone does not imply it.
    Several records share their first rewrite; the first of them is kept, with its own multi-hop questions.
    """
    return read_edits(path, _edit, limit)


def _edit(record: Record) -> Edit:
    number = record.number("case_id")
    rewrites = record.records("requested_rewrite")
    if not rewrites:
        raise InvalidEditError("The record has no rewrite.", "Leave it out.")
    questions = record.texts("questions") if len(rewrites) == 1 else []
    return Edit(
        prompt=rewrites[0].text("question"),
        target=rewrites[0].text("fact_new_uns"),
        subject=rewrites[0].text("subject"),
        portability=tuple(Probe(question, record.text("new_answer")) for question in questions),
        id=f"mquake-{number}",
        source=f"MQuAKE-CF case {number}",
    )
