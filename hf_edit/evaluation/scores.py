"""Comparing an answer with the one that was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import takewhile
from typing import Any

from hf_edit.evaluation.extras import needed
from hf_edit.evaluation.matching import normalised, words


def exact(answer: str, target: str) -> bool:
    """The same text, but for white space around it."""
    return answer.strip() == target.strip()


def normalised_exact(answer: str, accepted: Iterable[str]) -> bool:
    """One of the accepted answers, whatever its case, punctuation and articles."""
    said = normalised(answer)
    return any(said == normalised(one) if normalised(one) else exact(answer, one) for one in accepted)


def contains(answer: str, accepted: Iterable[str]) -> bool:
    """One of the accepted answers stands, as whole words, anywhere in the answer."""
    said = f" {normalised(answer)} "
    return any(f" {words} " in said for words in map(normalised, accepted) if words)


def token_f1(answer: str, accepted: Iterable[str]) -> float:
    """The largest F1 over normalised words, counted as often as they stand there, with one of the accepted answers."""
    return max((_f1(normalised(answer).split(), normalised(one).split()) for one in accepted), default=0.0)


def common_prefix(ids: Sequence[int], other: Sequence[int]) -> int:
    """With how many equal tokens two texts begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, other, strict=False)))


def rouge_l(answer: str, target: str) -> float:
    """ROUGE-L F1 over words (package rouge-score, no stemming).

    The package's own words are runs of a to z and digits, which leave nothing of a text in another script: where the
    target has more letters of others, words are as everywhere here.
    """
    letters = [c for c in target if c.isalnum()]
    foreign = 2 * sum(not c.isascii() for c in letters) > len(letters)
    return float(_rouge_scorer(foreign).score(target, answer)["rougeL"].fmeasure)


def bleu(answer: str, target: str) -> float:
    """Sentence BLEU over tokens, 0 to 1 (package sacrebleu: tokenizer 13a, exponential smoothing, effective order)."""
    return min(1.0, float(_bleu().sentence_score(answer, [target]).score) / 100)  # of equal texts a last bit more


class _Words:
    """A tokenizer of rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _rouge_scorer(foreign: bool) -> Any:
    scorer = needed("rouge_score.rouge_scorer", "rouge-score", "evaluation")
    return scorer.RougeScorer(["rougeL"], tokenizer=_Words() if foreign else None)


@cache
def _bleu() -> Any:
    return needed("sacrebleu.metrics", "sacrebleu", "evaluation").BLEU(effective_order=True)


def _f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted)) if shared else 0.0
