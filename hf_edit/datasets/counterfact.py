"""CounterFact, whole or with one paraphrase and one neighbour: statements to be continued by one false word."""

from __future__ import annotations

import os

from hf_edit.datasets.records import Case, Record, edits_of, read_cases
from hf_edit.edits import Edit, EditSet, Probe


def read(path: str | os.PathLike[str], limit: int | None = None) -> EditSet:
    """The edits `prompt -> target_new`; the neighbour, of which the old answer is true, is the locality probe.

    Cities have several twin towns, so a few prompts stand twice with different answers: the first of each is kept.
    """
    return edits_of(cases(path, limit), path)


def cases(path: str | os.PathLike[str], limit: int | None = None) -> list[Case]:
    """The edits with the answers that they replace."""
    return read_cases(path, _case, limit)


def _case(record: Record) -> Case:
    if "requested_rewrite" in record:
        return _whole(record)
    number = record.number("case_id")
    edit = Edit(
        prompt=record.text("prompt"),
        target=record.text("target_new"),
        subject=record.text("subject"),
        paraphrases=(record.text("rephrase_prompt"),),
        locality=(Probe(record.text("locality_prompt"), record.text("locality_ground_truth")),),
        id=f"counterfact-{number}",
        source=f"CounterFact case {number}",
    )
    return Case(edit, old=record.text("ground_truth"))


def _whole(record: Record) -> Case:
    """The form that was published first: two paraphrases and ten neighbours, which share the old answer."""
    number, rewrite = record.number("case_id"), record.record("requested_rewrite")
    old, subject = rewrite.record("target_true").text("str"), rewrite.text("subject")
    edit = Edit(
        prompt=rewrite.text("prompt").replace("{}", subject),
        target=rewrite.record("target_new").text("str"),
        subject=subject,
        paraphrases=tuple(record.texts("paraphrase_prompts")),
        locality=tuple(Probe(neighbour, old) for neighbour in record.texts("neighborhood_prompts")),
        id=f"counterfact-{number}",
        source=f"CounterFact case {number}",
    )
    return Case(edit, old=old)
