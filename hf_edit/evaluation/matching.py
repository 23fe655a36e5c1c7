"""Whether a free answer holds an accepted one, whatever its case, punctuation and articles."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable


ARTICLES = frozenset({"a", "an", "the"})
ABBREVIATIONS = frozenset({"dr", "jr", "mr", "mrs", "ms", "no", "prof", "sr", "st", "vs"})
"""Words behind which a full stop ends no sentence; single capitals, as initials, are the others."""

_END = re.compile(r"\n|[。！？]|[.!?]+[\"'”’)\]]*(?=\s|$)")
_LAST_WORD = re.compile(r"(\w+)$")


def normalised(text: str) -> str:
    """The words in lower case, one space between them, without articles; punctuation counts as space.

    So `O'Brien` has two words, and a possessive or a hyphen does not hide the name that it is part of.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    spaced = "".join(c if c.isalnum() or unicodedata.category(c).startswith("M") else " " for c in folded)
    return " ".join(word for word in spaced.split() if word not in ARTICLES)


def first_sentence(text: str) -> str:
    """Up to the end of the first sentence or line; a full stop behind an initial or a title ends none."""
    text = text.strip()
    for end in _END.finditer(text):
        before = _LAST_WORD.search(text[: end.start()])
        word = before.group(1) if before else ""
        if end.group().startswith(".") and (word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isupper())):
            continue
        return text[: end.end()].rstrip()
    return text


def mentions(answer: str, accepted: Iterable[str]) -> bool:
    """Whether one of the accepted answers stands, as whole words, in the first sentence of `answer`."""
    said = f" {normalised(first_sentence(answer))} "
    return any(f" {words} " in said for words in map(normalised, accepted) if words)
