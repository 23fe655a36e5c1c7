"""Which of many facts a question is about, by the words that they share: Okapi BM25."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from hf_edit.evaluation.matching import normalised


K1, B = 1.2, 0.75
"""How soon a word's repetition stops counting, and how much a long document is held back; the usual values."""


class BM25:
    """An index over documents.

    Args:
        documents: one at least.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        self.documents = documents
        self._words = [Counter(normalised(document).split()) for document in documents]
        self._mean = max(1.0, sum(map(Counter.total, self._words)) / len(documents))
        held = Counter(word for words in self._words for word in words)
        self._weight = {word: math.log1p((len(documents) - n + 0.5) / (n + 0.5)) for word, n in held.items()}

    def scores(self, query: str) -> list[float]:
        """Of every document; a word counts as often as it stands in the query."""
        asked = [word for word in normalised(query).split() if word in self._weight]
        return [
            sum(self._weight[word] * _saturated(words, word, self._mean) for word in asked) for words in self._words
        ]

    def best(self, query: str) -> str:
        """The document with the highest score, the first of several."""
        scores = self.scores(query)
        return self.documents[scores.index(max(scores))]


def _saturated(words: Counter[str], word: str, mean: float) -> float:
    count = words[word]
    return count * (K1 + 1) / (count + K1 * (1 - B + B * words.total() / mean))
