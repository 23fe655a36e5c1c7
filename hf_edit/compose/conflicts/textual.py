"""Conflicts that the texts of edits tell, without a model, and which edits give way."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hf_edit.compose.conflicts.questions import LIKE, LIKE_OF_MANY, Question, normalised, same_answer
from hf_edit.compose.conflicts.report import EditName, Finding, names_of
from hf_edit.edits import Edit, EditSet, prompt_key, question_of
from hf_edit.errors import ComposeError
from hf_edit.validation import shown


@dataclass(frozen=True, eq=False)
class _Wording:
    """One way to ask for an edit."""

    name: EditName
    edit: Edit
    question: Question


def textual_conflicts(edit_sets: Sequence[EditSet], names: Sequence[str] | None = None) -> list[Finding]:
    """Edits of different sets that ask the same question: conflicts where the answers differ, duplicates elsewhere.

    Prompts and listed paraphrases are compared by `Question.likeness`, the most alike wordings of two edits count.
    The findings do not depend on the order of the sets, but for which edit is named first. Only wordings that share
    a rare word are compared, so that sets of thousands of edits take seconds.

    Args:
        names: of the sets; `pack 1`, `pack 2`, ... when None.
    """
    labels = names_of(len(edit_sets), names)
    wordings = [
        _Wording(EditName(i, labels[i], edit.id), edit, Question.of(prompt, edit.subject))
        for i, edits in enumerate(edit_sets)
        for edit in edits
        for prompt in (edit.prompt, *edit.paraphrases)
    ]
    best: dict[tuple[EditName, EditName], tuple[float, Edit, Edit]] = {}
    for a, b in _candidates(wordings):
        likeness = a.question.likeness(b.question)
        if likeness >= LIKE and likeness > best.get((a.name, b.name), (0.0,))[0]:
            best[a.name, b.name] = likeness, a.edit, b.edit
    findings = [_finding(*named, found) for named, found in best.items()]
    return sorted(findings, key=lambda f: (not f.conflict, -f.score, f.first, f.second))


def resolve(
    edit_sets: Sequence[EditSet], prefer: str | int, names: Sequence[str] | None = None
) -> tuple[frozenset[str], ...]:
    """Which edits give way, so that no two of those left are in conflict or have the same prompt.

    An edit stays if it has no such trouble with one that stays of a set that goes before its own.

    Args:
        prefer: `order`: sets go in the order given; `newest`: in the reverse; or the name or place (from 0) of the
            set that goes first, the others following in the order given.
        names: of the sets, as for `textual_conflicts`.

    Returns:
        Per set, the ids of the edits to leave out.

    Raises:
        ComposeError: no set has that name or place.
    """
    ranks = {pack: rank for rank, pack in enumerate(_precedence(len(edit_sets), prefer, names))}
    troubles: dict[EditName, list[EditName]] = defaultdict(list)
    for finding in textual_conflicts(edit_sets, names):
        first, second = (_edit(edit_sets, name) for name in (finding.first, finding.second))
        if finding.conflict or prompt_key(first.prompt) == prompt_key(second.prompt):
            troubles[finding.first].append(finding.second)
            troubles[finding.second].append(finding.first)
    dropped: set[EditName] = set()
    for name in sorted(troubles, key=lambda name: ranks[name.pack]):
        if any(ranks[other.pack] < ranks[name.pack] and other not in dropped for other in troubles[name]):
            dropped.add(name)
    return tuple(frozenset(name.id for name in dropped if name.pack == i) for i in range(len(edit_sets)))


def _precedence(count: int, prefer: str | int, names: Sequence[str] | None) -> list[int]:
    labels, places = names_of(count, names), list(range(count))
    if prefer == "order":
        return places
    if prefer == "newest":
        return places[::-1]
    chosen = labels.index(prefer) if isinstance(prefer, str) and prefer in labels else prefer
    if isinstance(chosen, bool) or chosen not in places:
        places_or_names = f"order, newest, or one of {', '.join(labels)}"
        if isinstance(prefer, int):
            places_or_names = f"a place from 0 to {count - 1}"
        raise ComposeError(f"No pack to prefer is called {prefer!r}.", f"Use {places_or_names}.")
    return sorted(places, key=lambda place: place != chosen)


def _edit(edit_sets: Sequence[EditSet], name: EditName) -> Edit:
    return edit_sets[name.pack].by_id(name.id)


def _finding(first: EditName, second: EditName, found: tuple[float, Edit, Edit]) -> Finding:
    score, one, other = found
    same = Question.of(one.prompt).text == Question.of(other.prompt).text
    about = one.subject and other.subject and normalised(one.subject) == normalised(other.subject)
    asked, asked_too = (shown(question_of(edit.prompt)) for edit in (one, other))
    question = f"Both answer {asked}" if same else f"{asked} and {asked_too} ask the same"
    if same_answer(one.target, other.target, one.prompt, other.prompt):
        return Finding("duplicate", first, second, score, f"{question}, and both answer {shown(one.target)}.")
    kind = "question" if same else "fact" if about else "paraphrase"
    if kind == "fact":
        question += f" of {shown(str(one.subject))}"
    return Finding(kind, first, second, score, f"{question}: {shown(one.target)} against {shown(other.target)}.")


def _candidates(wordings: Sequence[_Wording]) -> Iterator[tuple[_Wording, _Wording]]:
    """Every pair of wordings of different sets that can be alike enough, the earlier set's first; some twice.

    Names must stand in both questions, so the rarest one of either finds the other. Without names, two questions
    share so many words that one of them is among the rarest of the shorter one.
    """
    by_text = _index(wordings, lambda q: [q.text])
    by_word = _index(wordings, lambda q: q.words)
    nameless = [w for w in wordings if not w.question.names]
    by_stem = _index(nameless, lambda q: set(q.words.values()))
    for wording in wordings:
        question = wording.question
        others: Iterable[_Wording] = by_text[question.text]
        if question.names:
            others = [*others, *by_word[min(question.names, key=lambda name: (len(by_word[name]), name))]]
        else:
            stems = sorted(set(question.words.values()), key=lambda stem: (len(by_stem[stem]), stem))
            least = math.ceil(2 * LIKE_OF_MANY / (1 + LIKE_OF_MANY) * len(stems))
            others = [*others, *(w for stem in stems[: len(stems) - least + 1] for w in by_stem[stem])]
        for other in others:
            if other.name.pack != wording.name.pack:
                yield (wording, other) if wording.name.pack < other.name.pack else (other, wording)


def _index(wordings: Iterable[_Wording], words: Callable[[Question], Iterable[str]]) -> Mapping[str, list[_Wording]]:
    index: dict[str, list[_Wording]] = defaultdict(list)
    for wording in wordings:
        for word in words(wording.question):
            index[word].append(wording)
    return index
