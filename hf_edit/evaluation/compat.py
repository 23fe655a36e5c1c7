"""Long-form scores as published tables have them, faults included: only to stand beside those tables.

- BLEU is over characters and not smoothed.
- ROUGE is recall alone, of n-grams as sets, and ROUGE-L the union over sentences of longest common subsequences as
  sets of words: junk behind a right answer costs nothing. As the package rouge 1.0.1 computes them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


ORDERS = 4


def character_bleu(answer: str, target: str) -> float:
    """Unsmoothed BLEU-4 over characters, from 0 to 1."""
    logs = []
    for n in range(1, ORDERS + 1):
        said, wanted = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (answer, target))
        shared = sum((said & wanted).values())
        if not shared:
            return 0.0
        logs.append(math.log(shared / said.total()))
    brevity = min(0.0, 1 - len(target) / len(answer))
    return math.exp(brevity + sum(logs) / ORDERS)


def rouge_n_recall(answer: str, target: str, n: int) -> float:
    """Share of the target's different word n-grams that stand in the answer."""
    said, wanted = (_ngrams([w for s in _sentences(text) for w in s], n) for text in (answer, target))
    return len(said & wanted) / len(wanted) if wanted else 0.0


def rouge_l_recall(answer: str, target: str) -> float:
    """Share of the target's different words that are in a longest common subsequence of two sentences."""
    said, wanted = _sentences(answer), _sentences(target)
    words = {word for sentence in wanted for word in sentence}
    found = {word for one in wanted for other in said for word in _common_subsequence(one, other)}
    return len(found) / len(words) if words else 0.0


def _sentences(text: str) -> list[list[str]]:
    """Words between full stops; white space alone is one empty word, as published."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _ngrams(words: Sequence[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """A longest common subsequence, backwards; of several, the one that drops words of `second` first."""
    lengths = [[0] * (len(second) + 1)]
    for word in first:
        row = [0]
        for j, other in enumerate(second):
            row.append(lengths[-1][j] + 1 if word == other else max(lengths[-1][j + 1], row[j]))
        lengths.append(row)
    i, j, found = len(first), len(second), []
    while i and j:
        if first[i - 1] == second[j - 1]:
            i, j = i - 1, j - 1
            found.append(first[i])
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found
