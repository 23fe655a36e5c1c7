"""MQuAKE-CF with AKEW's long-form facts: a false fact told in a paragraph, and questions several hops away."""

from __future__ import annotations

import os
from dataclasses import replace

from hf_edit.datasets.records import Case, Record, edits_of, read_cases
from hf_edit.edits import Edit, EditSet, Probe
from hf_edit.errors import InvalidEditError


def read(path: str | os.PathLike[str], limit: int | None = None) -> EditSet:
    """The edits of each record's first rewrite, `question -> fact_new_uns`.

    The three multi-hop questions become portability probes only where the record has a single rewrite: with more,
    their answer follows from all rewrites together and the first alone does not imply it.
    Several records share their first rewrite; the first of them is kept, with its own multi-hop questions.
    """
    return edits_of(cases(path, limit), path)


def cases(path: str | os.PathLike[str], limit: int | None = None) -> list[Case]:
    """The edits with other ways to say the answers to the multi-hop questions."""
    return read_cases(path, _case, limit)


def facts(path: str | os.PathLike[str], limit: int | None = None) -> list[Case]:
    """The first rewrites as short facts, `question -> target_new`, with the multi-hop questions as hops."""
    return read_cases(path, _fact, limit)


def _case(record: Record) -> Case:
    number = record.number("case_id")
    rewrites = _rewrites(record)
    questions = record.texts("questions") if len(rewrites) == 1 else []
    aliases = {record.text("new_answer"): record.texts("new_answer_alias")} if "new_answer_alias" in record else {}
    edit = Edit(
        prompt=rewrites[0].text("question"),
        target=rewrites[0].text("fact_new_uns"),
        subject=rewrites[0].text("subject"),
        portability=tuple(Probe(question, record.text("new_answer")) for question in questions),
        id=f"mquake-{number}",
        source=f"MQuAKE-CF case {number}",
    )
    return Case(edit, aliases=aliases if questions else {})


def _fact(record: Record) -> Case:
    long = _case(record)
    rewrite = _rewrites(record)[0]
    (accepted,) = [(answer, *others) for answer, others in long.aliases.items()] or [()]
    hops = [(str(probe.prompt), accepted or (str(probe.answer),)) for probe in long.edit.portability]
    edit = replace(long.edit, target=rewrite.record("target_new").text("str"), portability=())
    return Case(edit, old=rewrite.record("target_true").text("str"), fact=rewrite.text("fact_new"), hops=hops)


def _rewrites(record: Record) -> list[Record]:
    rewrites = record.records("requested_rewrite")
    if not rewrites:
        raise InvalidEditError("The record has no rewrite.", "Leave it out.")
    return rewrites
