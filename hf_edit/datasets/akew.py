"""AKEW's CounterFact and WikiUpdate: facts told in a paragraph, with triples that the paragraph says."""

from __future__ import annotations

import os

from hf_edit.datasets.records import Case, Record, edits_of, read_cases
from hf_edit.edits import Edit, EditSet, Probe


SUB_QUESTIONS = 5
"""Of the triples the first few are asked, as published results do."""


def read(path: str | os.PathLike[str], limit: int | None = None) -> EditSet:
    """The edits `prompt_full -> fact_new_uns`, where there is no `prompt_full` (WikiUpdate) `question -> ...`.

    Triples become portability probes. CounterFact's paraphrases, each behind a sentence that has nothing to do with
    it, and its neighbours are kept; WikiUpdate has none. MQuAKE-CF, whose records have several rewrites, has a reader
    of its own.
    """
    return edits_of(cases(path, limit), path)


def cases(path: str | os.PathLike[str], limit: int | None = None) -> list[Case]:
    """The edits with the fact in one sentence."""
    return read_cases(path, _case, limit)


def _case(record: Record) -> Case:
    number, rewrite = record.number("case_id"), record.record("requested_rewrite")
    old = rewrite.record("target_true").text("str")
    triples = rewrite.records("unsfact_triplets_GPT")[:SUB_QUESTIONS]
    edit = Edit(
        prompt=rewrite.text("prompt_full" if "prompt_full" in rewrite else "question"),
        target=rewrite.text("fact_new_uns"),
        subject=rewrite.text("subject"),
        paraphrases=tuple(_optional(record, "paraphrase_prompts")),
        locality=tuple(Probe(neighbour, old) for neighbour in _optional(record, "neighborhood_prompts")),
        portability=tuple(
            Probe(one.text("prompt").replace("{}", one.text("subject")), one.text("target")) for one in triples
        ),
        id=f"akew-{number}",
        source=f"AKEW case {number}",
    )
    return Case(edit, fact=rewrite.text("fact_new") if "fact_new" in rewrite else None)


def _optional(record: Record, field: str) -> list[str]:
    return record.texts(field) if field in record else []
