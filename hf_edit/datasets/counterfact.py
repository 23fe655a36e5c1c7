"""CounterFact in its form with one paraphrase and one neighbour: statements to be continued by one false word."""

from __future__ import annotations

import os

from hf_edit.datasets.records import Record, read_edits
from hf_edit.edits import Edit, EditSet, Probe


def read(path: str | os.PathLike[str], limit: int | None = None) -> EditSet:
    """The edits `prompt -> target_new`; the neighbour, of which the old answer is true, is the locality probe.

    Cities have several twin towns, so a few prompts stand twice with different answers: the first of each is kept.
    """
    return read_edits(path, _edit, limit)


def _edit(record: Record) -> Edit:
    number = record.number("case_id")
    return Edit(
        prompt=record.text("prompt"),
        target=record.text("target_new"),
        subject=record.text("subject"),
        paraphrases=(record.text("rephrase_prompt"),),
        locality=(Probe(record.text("locality_prompt"), record.text("locality_ground_truth")),),
        id=f"counterfact-{number}",
        source=f"CounterFact case {number}",
    )
