from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from hf_edit.bench.retrieval import BM25, K1, B


FACTS = ["The lamp is made in Veldora.", "The chair is made of oak.", "The mill stands on the Arn, the Arn alone."]


def test_the_fact_that_shares_rare_words_is_found() -> None:
    index = BM25(FACTS)
    assert index.best("Where is the lamp made?") == FACTS[0]
    assert index.best("What is the chair made of?") == FACTS[1]
    assert index.best("On which river, the Arn?") == FACTS[2]
    assert index.best("nothing in common") == FACTS[0]


def reference(documents: list[str], query: str) -> list[float]:
    """The formula as it is written down, term by term."""
    words = [document.split() for document in documents]
    mean = max(1.0, sum(map(len, words)) / len(words))
    scores = []
    for document in words:
        score = 0.0
        for term in query.split():
            holding = sum(term in other for other in words)
            idf = math.log((len(words) - holding + 0.5) / (holding + 0.5) + 1)
            f = document.count(term)
            score += idf * f * (K1 + 1) / (f + K1 * (1 - B + B * len(document) / mean))
        scores.append(score)
    return scores


TEXTS = st.lists(st.sampled_from(["x", "y", "z", "q"]), max_size=6).map(" ".join)


@given(st.lists(TEXTS, min_size=1, max_size=5), TEXTS)
def test_scores_are_those_of_the_formula(documents: list[str], query: str) -> None:
    for found, expected in zip(BM25(documents).scores(query), reference(documents, query), strict=True):
        assert math.isclose(found, expected, abs_tol=1e-12)
