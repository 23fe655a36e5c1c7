"""RippleEdits: facts with questions on what follows from them and what does not."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from hf_edit.datasets.records import Case, Record, edits_of, read_cases
from hf_edit.edits import Edit, EditSet, Probe


REWORDED = ("Subject_Aliasing",)
UNMOVED = ("Relation_Specificity", "Forgetfulness")
FOLLOWING = ("Compositionality_I", "Compositionality_II", "Logical_Generalization")
"""Kinds of questions, as fields of evaluation rows; one without any question is left out or an empty list."""


def read(path: str | os.PathLike[str], limit: int | None = None) -> EditSet:
    """The edits `prompt -> target_new` of training rows (one paraphrase, one neighbour) or evaluation rows.

    Of the latter all questions are kept: under other names of the subject as paraphrases, what is to stay as locality
    probes, what follows as portability probes.
    """
    return edits_of(cases(path, limit), path)


def cases(path: str | os.PathLike[str], limit: int | None = None) -> list[Case]:
    """The edits with the answers that they replace, and further answers to their questions, where the rows say so."""
    return read_cases(path, _case, limit)


def _case(record: Record) -> Case:
    trained = "rephrase_prompt" in record
    unmoved = [one for kind in UNMOVED for one in _questions(record, kind)]
    following = [one for kind in FOLLOWING for one in _questions(record, kind)]
    edit = Edit(
        prompt=record.text("prompt"),
        target=record.text("target_new"),
        subject=record.text("subject") if "subject" in record else None,
        paraphrases=(record.text("rephrase_prompt"),)
        if trained
        else tuple(one.text("prompt") for kind in REWORDED for one in _questions(record, kind)),
        locality=(Probe(record.text("locality_prompt"), record.text("locality_ground_truth")),)
        if trained
        else tuple(_probe(one) for one in unmoved),
        portability=tuple(_probe(one) for one in following),
        id=f"ripple-{record.index}",
        source=f"RippleEdits record {record.index}",
    )
    # what counts for the edit itself is known of its other wordings only
    own = [one.texts("targets") for kind in REWORDED for one in _questions(record, kind)] or [[edit.target]]
    return Case(
        edit,
        old=record.text("ground_truth") if "ground_truth" in record else None,
        aliases=_aliases([*own, *(one.texts("targets") for one in (*unmoved, *following))]),
    )


def _aliases(targets: Iterable[Sequence[str]]) -> dict[str, list[str]]:
    """First answer to a question -> others that count: to all questions with that answer, which are not told apart."""
    aliases: dict[str, list[str]] = {}
    for first, *others in targets:
        aliases[first] = [one for one in aliases.get(first, dict.fromkeys(others)) if one in others]
    return {first: others for first, others in aliases.items() if others}


def _questions(record: Record, kind: str) -> list[Record]:
    """The questions of a kind that have an answer."""
    return [one for one in record.records(kind) if one["targets"]] if kind in record else []


def _probe(question: Record) -> Probe:
    return Probe(question.text("prompt"), question.texts("targets")[0])
