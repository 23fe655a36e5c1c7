"""Scores of one answer."""

from __future__ import annotations

import random

import pytest

from hf_edit.errors import ConfigError
from hf_edit.evaluation.extras import needed
from hf_edit.evaluation.matching import normalised
from hf_edit.evaluation.scores import (
    bleu,
    common_prefix,
    contains,
    exact,
    normalised_exact,
    rouge_l,
    token_f1,
)


WORDS = ("the", "lamp", "Lamp", "was", "made", "by", "Tarvello", "in", "Oru.", "late", "1901,", "(x)", "it's")


def pairs(count: int = 100) -> list[tuple[str, str]]:
    generator = random.Random(0)
    lengths = [(generator.randint(0, 30), generator.randint(1, 30)) for _ in range(count)]
    return [(" ".join(generator.choices(WORDS, k=a)), " ".join(generator.choices(WORDS, k=b))) for a, b in lengths]


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


def test_rouge_l_is_the_packages() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    for answer, target in pairs():
        assert rouge_l(answer, target) == scorer.score(target, answer)["rougeL"].fmeasure


def test_bleu_is_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    for answer, target in pairs():
        expected = sacrebleu.sentence_bleu(answer, [target], smooth_method="exp", tokenize="13a").score
        assert bleu(answer, target) == pytest.approx(expected / 100)
    assert bleu("same text as asked for", "same text as asked for") == pytest.approx(1.0)


def test_token_f1_is_scikit_learns() -> None:
    f1_score = pytest.importorskip("sklearn.metrics").f1_score
    for answer, target in pairs():
        said, wanted = normalised(answer).split(), normalised(target).split()
        # each occurrence of a word is a thing to find: counted as present or absent on either side
        slots = [(word, i) for word in {*said, *wanted} for i in range(max(said.count(word), wanted.count(word)))]
        truth = [i < wanted.count(word) for word, i in slots]
        found = [i < said.count(word) for word, i in slots]
        assert token_f1(answer, [target]) == pytest.approx(f1_score(truth, found, zero_division=0.0))


@pytest.mark.parametrize(
    ("answer", "accepted", "whole", "held"),
    [
        ("The Port Amber!", ["port amber"], True, True),
        ("It is Port Amber, I think.", ["Port Amber"], False, True),
        ("Port Ambers", ["Port Amber"], False, False),
        ("Amber", ["Port Amber", "amber"], True, True),
        ("", ["Port Amber"], False, False),
        ("?!", ["?!"], True, False),  # of signs alone nothing is left to look for
        ("!?", ["?!"], False, False),
    ],
)
def test_normalised_and_contained(answer: str, accepted: list[str], whole: bool, held: bool) -> None:
    assert (normalised_exact(answer, accepted), contains(answer, accepted)) == (whole, held)


def test_f1_is_with_the_nearest_alias() -> None:
    assert token_f1("a b b c", ["b b d"]) == pytest.approx(2 * 2 / (3 + 3))  # the article does not count
    assert token_f1("in Oru", ["late", "Oru"]) == pytest.approx(2 / 3)
    assert token_f1("in Oru", []) == 0.0


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4, 3]) == 2
    assert common_prefix([], [1]) == 0 and common_prefix([1, 2], [1, 2, 3]) == 2


def test_a_library_that_is_absent_is_named_with_its_extra() -> None:
    with pytest.raises(ConfigError, match="no-such-package is not installed.*hf-edit\\[evaluation\\]"):
        needed("no_such_module", "no-such-package", "evaluation")


@pytest.mark.parametrize("text", ["Москва столица", "東京は首都", "Η Αθήνα"])
def test_scripts_that_rouge_score_has_no_words_for(text: str) -> None:
    assert rouge_l(text, text) == 1
    assert rouge_l("Paris", text) == 0


def test_words_without_spaces_between_them_are_found() -> None:
    assert contains("法国的首都是巴黎。", ["巴黎"]) and not contains("法国的首都是巴黎。", ["东京"])
    assert not contains("1,000,000", ["1"]) and not normalised_exact("-5", ["5"])
