"""Published scores, faults included, against the packages that published code calls."""

from __future__ import annotations

import random
import warnings

import pytest

from hf_edit.evaluation.compat import character_bleu, rouge_l_recall, rouge_n_recall


WORDS = ("the", "lamp", "was", "made", "by", "Tarvello", "in", "Oru.", "late", ".", "a.b", "1901,", "the.")


def some_text(generator: random.Random, longest: int = 25) -> str:
    words = generator.choices(WORDS, k=generator.randint(1, longest))
    return "".join(word + generator.choice((" ", " ", "  ", "\n")) for word in words).strip()


def pairs(count: int = 200) -> list[tuple[str, str]]:
    generator = random.Random(0)
    return [(some_text(generator), some_text(generator)) for _ in range(count)]


def test_rouge_recall_is_the_packages() -> None:
    package = pytest.importorskip("rouge").Rouge()
    for answer, target in pairs():
        if not answer.replace(".", "") or not target.replace(".", ""):
            continue  # which the package refuses
        scores = package.get_scores(answer, target)[0]
        assert rouge_n_recall(answer, target, 1) == pytest.approx(scores["rouge-1"]["r"])
        assert rouge_n_recall(answer, target, 2) == pytest.approx(scores["rouge-2"]["r"])
        assert rouge_l_recall(answer, target) == pytest.approx(scores["rouge-l"]["r"]), (answer, target)


def test_character_bleu_is_nltks_on_strings() -> None:
    nltk = pytest.importorskip("nltk.translate.bleu_score")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of n-grams that are not there
        for answer, target in [*pairs(), ("abc", "abcd"), ("abcde", "vwxyz"), ("same text", "same text")]:
            expected = nltk.sentence_bleu([target], answer)
            assert character_bleu(answer, target) == pytest.approx(expected, abs=1e-12)


def test_junk_behind_a_right_answer_is_free() -> None:
    target = "The lamp was made by Tarvello in Oru."
    assert rouge_l_recall(f"{target} {'junk ' * 200}", target) == rouge_n_recall(f"{target} junk", target, 2) == 1.0


@pytest.mark.parametrize("answer", ["", ".", " "])
def test_no_answer_scores_nothing(answer: str) -> None:
    target = "The lamp was made by Tarvello."
    assert character_bleu(answer, target) == rouge_l_recall(answer, target) == rouge_n_recall(answer, target, 1) == 0.0
