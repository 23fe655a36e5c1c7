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


_SEPARATED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_IN_NUMBER = re.compile(r"(?<=\d)\.(?=\d)|(?<![\w.])-(?=\d)")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]"
)
"""A character of Thai, Lao, Burmese, Khmer, kana or Han, which are written without spaces between words."""


def normalised(text: str) -> str:
    """The words in lower case, one space between them, without articles; punctuation counts as space.

    So `O'Brien` has two words, and a possessive or a hyphen does not hide the name that it is part of. The point and
    the sign of a number belong to it, and its thousands are not parted. Where words have no spaces between them, each
    character is one. A text of nothing but articles keeps them.
    """
    found = words(text)
    return " ".join([word for word in found if word not in ARTICLES] or found)


def words(text: str) -> list[str]:
    """The words of `normalised`, articles among them."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("\N{MINUS SIGN}", "-")
    folded = _SEPARATED.sub("", folded)
    numeric = {match.start() for match in _IN_NUMBER.finditer(folded)}
    spaced = "".join(
        c if place in numeric or c.isalnum() or unicodedata.category(c).startswith("M") else " "
        for place, c in enumerate(folded)
    )
    return _UNSPACED.sub(r" \g<0> ", spaced).split()


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
