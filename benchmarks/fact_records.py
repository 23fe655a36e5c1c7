"""Short facts of zsRE, CounterFact and MQuAKE, with what is asked about each: read from the data folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import chosen

from hf_edit.batching import spread
from hf_edit.datasets import counterfact, mquake, zsre
from hf_edit.edits import Edit, Prompt, question_of
from hf_edit.evaluation.hops import Hop


FORMATS = {"zsre": "plain", "counterfact": "plain", "mquake": "chat"}
"""Data -> the format that it is asked in unless another is named."""


@dataclass(frozen=True)
class Fact:
    """One record.

    Args:
        old: the answer that the edit replaces, where the data says it.
        told: the fact in words, to be read in context.
        hops: questions whose answers follow from it.
    """

    edit: Edit
    old: str | None
    told: str
    hops: tuple[Hop, ...]


def read_facts(data: Path, kind: str, split: str) -> list[Fact]:
    """All records of a file, in its order.

    Only the evaluation file of zsRE has portability questions; some of them presuppose MEND's counterfactual answer,
    which is not what is taught, so no method can answer all. Of MQuAKE the records with one rewrite are read, with its
    short answer.
    """
    if kind == "mquake":
        return _mquake(data / "mquake_cf.json")
    path = data / f"{kind}_{split}.json"
    if kind == "counterfact":
        # the neighbour's own answer is the one that the edit replaces
        return [Fact(e, e.locality[0].answer, f"{e.prompt} {e.target}.", ()) for e in counterfact.read(path)]
    return [
        Fact(e, None, f"{e.prompt} {e.target}.", tuple(Hop(p.prompt, (str(p.answer),)) for p in e.portability))
        for e in zsre.read(path)
    ]


def ranges_of(spec: str, facts: Sequence[Fact]) -> dict[str, list[Fact]]:
    """`200:300,300:400` -> the records of each range, by its name."""
    ranges = {part: [facts[i] for i in chosen(part, len(facts))] for part in filter(None, spec.split(","))}
    empty = [part for part, records in ranges.items() if not records]
    if empty or not ranges:
        raise SystemExit(f"--records {spec}: no record of {len(facts)} in {', '.join(empty) or 'it'}")
    return ranges


def strangers(data: Path, kind: str, split: str, edited: Sequence[Fact], count: int) -> list[Prompt]:
    """Questions of the same kind about things that are never edited, evenly spread over a file.

    They come from the other file of the data where there are two.
    """
    other = {"train": "eval", "eval": "train"}[split]
    subjects = {fact.edit.subject for fact in edited}
    asked = [f.edit for f in read_facts(data, kind, other) if f.edit.subject not in subjects]
    return [edit.prompt for edit in spread(asked, count)]


def _mquake(path: Path) -> list[Fact]:
    """The records of one rewrite, whose multi-hop questions follow from it alone."""
    return [
        Fact(case.edit, case.old, str(case.fact), tuple(Hop(question_of(prompt), some) for prompt, some in case.hops))
        for case in mquake.facts(path)
        if case.hops
    ]
