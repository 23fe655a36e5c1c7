"""What a question asks, as far as its words tell, and how alike two questions are.

A plain lexical measure, so that everyone can follow its verdicts: names and numbers must agree, and so must negations
and what is asked for (who, where, when, ...); of the words left, enough must be the same (`likeness`). Knows English;
of other languages it finds questions of nearly the same words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from hf_edit.compose.conflicts.lexicon import (
    EMPTY,
    HEADS,
    MEANINGS,
    NEGATING_PREFIXES,
    NEGATIONS,
    NUMBERS,
    OPPOSITE,
    PHRASES,
    QUESTION_WORDS,
    REQUESTS,
    SAME,
    WEAK,
)
from hf_edit.edits import Prompt, question_of


LIKE = 0.65
"""Two questions ask the same from this likeness on."""
MANY, LIKE_OF_MANY = 3, 0.4
"""Of long questions, with so many words in common, this share says as much as `LIKE` of short ones."""

_WORD = re.compile(r"-?\d[\w.,:/-]*\w[%+]*|-?\d[%+]*|\w+(?:['-]\w+)*[+#]*")
_FILLERS = frozenset("a an the it its they that this is are was were be been in at on of".split())
"""What an answer may have or leave out and still be the same."""

_ENDINGS = (
    (("ing", "ied", "ies", "ed", "es", "s"), 3),
    (("ation", "ition", "ment", "ness", "ence", "ent", "ion", "er", "or", "al", "ly"), 4),
    (("e", "y", "i"), 3),
)
"""Endings that are cut off, at most one of each group, and how many letters they leave at least."""


def normalised(text: str) -> str:
    """Equal for texts that differ only in case, punctuation, white space or the width of their characters."""
    words = _words(text)
    return " ".join(word.lower() for word in words) if words else "".join(text.split())


@dataclass(frozen=True)
class Question:
    """The parts of a question that are compared.

    Args:
        text: normalised.
        words: word that carries what is asked -> its stem.
        names: those of the words that are names or numbers, which no paraphrase leaves out.
        negated: whether the number of negations is odd.
        kind: what is asked for, such as `person` or `place:city`; empty where the words do not tell.
    """

    text: str
    words: Mapping[str, str]
    names: frozenset[str]
    negated: bool
    kind: str

    @classmethod
    def of(cls, prompt: Prompt, subject: str | None = None) -> Question:
        """Read a prompt; its earlier turns count, its system message does not.

        Args:
            subject: what the edit is about, whose words count as names.
        """
        turns = [] if isinstance(prompt, str) else [m.content for m in prompt[:-1] if m.role != "system"]
        text = "\n".join([*turns, question_of(prompt)])
        words, kind = _asked(text)
        names = NUMBERS.union(_names(text), (word.lower() for word in _words(subject or "")))
        negations = sum(word.lower() in NEGATIONS for word in _words(text))
        return cls(normalised(text), words, names & words.keys(), negations % 2 == 1, kind)

    def likeness(self, other: Question) -> float:
        """How much two questions ask the same, 0 to 1: of the words that are no names, the share in common.

        0 where names, numbers, negations or what is asked for differ, or a word stands against its opposite.
        """
        if self.text == other.text:
            return 1.0
        names = self.names | other.names
        shared = names <= self.words.keys() & other.words.keys()
        if not shared or self.negated != other.negated or not _agree(self.kind, other.kind):
            return 0.0
        mine, its = ({stem for word, stem in q.words.items() if word not in names} for q in (self, other))
        if not (mine or its):
            return float(bool(names) and self.kind == other.kind)
        if any(_opposite(stem) & (its - mine) for stem in mine - its):
            return 0.0
        common, fewer, more = len(mine & its), *sorted((len(mine - its), len(its - mine)))
        share = common / (common + 2 * fewer + (more - fewer) / 2)
        return share if common < MANY else min(1.0, share * LIKE / LIKE_OF_MANY)


def same_answer(first: str, second: str, *questions: Prompt) -> bool:
    """Whether two answers say the same, but for case, punctuation, small words and words taken from the question."""
    if normalised(first) == normalised(second):
        return True
    asked = {_stem(word.lower()) for question in questions for word in _words(question_of(question))}
    (whole, short, taken), (whole2, short2, taken2) = _answered(first, asked), _answered(second, asked)
    if not (short and short2):
        return False
    return whole == whole2 or short == whole2 or whole == short2 or (short == short2 and taken == taken2)


def _answered(text: str, asked: set[str]) -> tuple[list[str], list[str], set[str]]:
    """The words of an answer, those that the question does not hold, and those that it does."""
    whole = [_stem(word.lower()) for word in _words(text) if word.lower() not in _FILLERS]
    return whole, [word for word in whole if word not in asked], {word for word in whole if word in asked}


def _words(text: str) -> list[str]:
    """The words in their own case, contractions and possessives taken apart."""
    text = unicodedata.normalize("NFKC", text).replace("’", "'").replace("ʼ", "'")
    text = re.sub(r"(?i)\bcan't\b|\bcan not\b", "cannot", text)
    text = re.sub(r"(?i)n't\b", " not", text)
    text = re.sub(r"'(?:s|re|ll|ve|d|m)?(?!\w)", "", re.sub(r"(?<=\d),(?=\d{3}\b)", "", text))
    return _WORD.findall(text)


def _names(text: str) -> Iterator[str]:
    """Words with a digit, and capitalised ones unless the beginning of a sentence is reason enough; in lower case."""
    if text == text.upper():
        return
    for sentence in re.split(r"[.?!:]\s+|\n", text):
        words = _words(sentence)
        for i, word in enumerate(words):
            reason_enough = i == 0 and not any(next_one[:1].isupper() for next_one in words[1:2])
            capital = word[:1].isupper() and not reason_enough and word.lower() not in EMPTY | NEGATIONS
            if capital or any(map(str.isdigit, word)):
                yield word.lower()


def _asked(text: str) -> tuple[dict[str, str], str]:
    """The words that carry what is asked with their stems, and the kind of what is asked for."""
    words = [word.lower() for word in _words(_rephrased(text))]
    kind, used = _kind(words, "?" in text)
    stems = {}
    for i, word in enumerate(words):
        if i not in used and word not in EMPTY and word not in NEGATIONS:
            stem, implied = MEANINGS.get(word) or MEANINGS.get(word.removesuffix("s")) or (word, "")
            kind = kind or implied
            if stem:
                stems[word] = _stem(stem)
    strong = {word: stem for word, stem in stems.items() if word not in WEAK}
    return strong or stems, kind


def _rephrased(text: str) -> str:
    for phrase, words in PHRASES.items():
        text = re.sub(rf"(?i)\b{phrase}\b", words, text)
    return text


def _kind(words: list[str], question: bool) -> tuple[str, set[int]]:
    """What is asked for, and the places of words that say no more than that."""
    question = question or bool(words) and (words[0] in QUESTION_WORDS or bool(REQUESTS & set(words)))
    for i, word in enumerate(words):
        if word in ("what", "which"):
            place = _head(words, i)
            return ("", set()) if place is None else (HEADS[words[place]], {place})
        if question and word == "how":
            return ("count" if words[i + 1 : i + 2] in (["many"], ["much"]) else ""), set()
        if question and word in QUESTION_WORDS:
            return QUESTION_WORDS[word], set()
    # a text to be continued, such as "... was born in the city of"
    ending = [i for i in range(max(0, len(words) - 3), len(words)) if words[i] in HEADS and not question]
    return (HEADS[words[ending[-1]]], {ending[-1]}) if ending else ("", set())


def _head(words: list[str], what: int) -> int | None:
    """The place of the noun that `what` or `which` asks for: "which (old) city", "what is the city of"."""

    def noun(place: int) -> bool:
        return place < len(words) and words[place] in HEADS

    if noun(what + 1):
        return what + 1
    if noun(what + 2) and words[what + 1] not in EMPTY:
        return what + 2
    if words[what + 1 : what + 2] in (["is"], ["are"]):
        places = (what + 2, what + 3)
        behind = ("of", "where", "in", "when")
        return next((p for p in places if noun(p) and words[p + 1 : p + 2] and words[p + 1] in behind), None)
    return None


def _agree(first: str, second: str) -> bool:
    """Whether two kinds may be the same; one that is not told, or less narrow, agrees with all within it."""
    return not first or not second or f"{first}:".startswith(f"{second}:") or f"{second}:".startswith(f"{first}:")


@cache
def _stem(word: str) -> str:
    """One form for the forms of a word, and for words that mean the same in a question."""
    return _meanings().get(word) or _meanings().get(_cut(word)) or _cut(word)


def _cut(word: str) -> str:
    """Without the endings of plurals and verbs, then without those that make nouns and adjectives of verbs."""
    if not word.isalpha() or not word.isascii():
        return word
    for endings, least in _ENDINGS:
        ending = next((e for e in endings if word.endswith(e) and len(word) >= len(e) + least), "")
        word = word.removesuffix(ending)
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return word


@cache
def _meanings() -> dict[str, str]:
    table = {}
    for line in SAME:
        first, *others = line.split()
        for word in (first, *others):
            table[word] = table[_cut(word)] = first
    return table


@cache
def _opposites() -> dict[str, frozenset[str]]:
    table: dict[str, frozenset[str]] = {}
    for left, right in OPPOSITE:
        for words, others in ((left, right), (right, left)):
            for word in words.split():
                table[_stem(word)] = table.get(_stem(word), frozenset()) | {_stem(other) for other in others.split()}
    return table


def _opposite(stem: str) -> frozenset[str]:
    negating = {f"{prefix}{stem}" for prefix in NEGATING_PREFIXES}
    negating |= {stem.removeprefix(prefix) for prefix in NEGATING_PREFIXES if stem.startswith(prefix)}
    return _opposites().get(stem, frozenset()) | negating
