"""zsRE as MEND or MALMEN writes it: short true answers, one paraphrase, one unrelated question."""

from __future__ import annotations

import os

from hf_edit.datasets.records import Case, Record, edits_of, read_cases
from hf_edit.edits import Edit, EditSet, Probe
from hf_edit.errors import InvalidEditError


def read(path: str | os.PathLike[str], limit: int | None = None) -> EditSet:
    """The edits `src -> answers[0]` (MALMEN: `src -> ans`): the true answer, not MEND's counterfactual `alt`.

    Unrelated questions come from Natural Questions without capitals or question mark; the mark is added.
    Some portability questions of the published file presuppose `alt`: they are kept as they stand, so a low score on
    them says little.
    """
    return edits_of(cases(path, limit), path)


def cases(path: str | os.PathLike[str], limit: int | None = None) -> list[Case]:
    """The edits with the other right answers, which count as well."""
    return read_cases(path, _case, limit)


def _case(record: Record) -> Case:
    unrelated = record.text("loc").removeprefix("nq question: ").rstrip("? ") + "?"
    further = (record.record("portability"),) if "portability" in record else ()
    answers = [record.text("ans")] if "ans" in record else record.texts("answers")
    if not answers:
        raise InvalidEditError("The record has no answer.", "Leave it out.")
    edit = Edit(
        prompt=record.text("src"),
        target=answers[0],
        subject=record.text("subject") if "subject" in record else None,
        paraphrases=(record.text("rephrase"),),
        locality=(Probe(unrelated, record.text("loc_ans")),),
        portability=tuple(Probe(hop.text("New Question"), hop.text("New Answer")) for hop in further),
        id=f"zsre-{record.index}",
        source=f"zsRE record {record.index}",
    )
    return Case(edit, aliases={answers[0]: answers[1:]} if answers[1:] else {})
