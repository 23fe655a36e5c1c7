"""Scores of one answer."""

from __future__ import annotations

import pytest

from hf_edit.evaluation.scores import exact, rouge_l


@pytest.mark.parametrize(
    ("answer", "target", "same"),
    [
        ("Port Amber.", "Port Amber.", True),
        (" Port Amber.\n", "Port Amber.", True),
        ("Port Amber", "Port Amber.", False),
        ("port amber.", "Port Amber.", False),
        ("Port  Amber.", "Port Amber.", False),
        ("", "Port Amber.", False),
    ],
)
def test_exact_is_the_same_text_but_for_space_around_it(answer: str, target: str, same: bool) -> None:
    assert exact(answer, target) is same


@pytest.mark.parametrize(
    ("answer", "target", "score"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1.0),
        ("", "the cat", 0.0),
        ("a dog", "the cat", 0.0),
        ("the cat sat", "the cat sat on the mat", 2 * 1 * 0.5 / 1.5),  # precision 1, recall 1/2
        ("mat the cat on", "the cat sat on the mat", 2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6)),
        ("walking", "walks", 0.0),  # no stemming
    ],
)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(answer: str, target: str, score: float) -> None:
    assert rouge_l(answer, target) == pytest.approx(score)
