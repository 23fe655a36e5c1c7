"""Comparing an answer with the one that was asked for."""

from __future__ import annotations


def exact(answer: str, target: str) -> bool:
    """The same text, but for white space around it."""
    return answer.strip() == target.strip()


def rouge_l(answer: str, target: str) -> float:
    """ROUGE-L F1 over words (package rouge-score, no stemming)."""
    from rouge_score.rouge_scorer import RougeScorer

    return float(RougeScorer(["rougeL"]).score(target, answer)["rougeL"].fmeasure)
