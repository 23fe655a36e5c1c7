"""Normalisation, first sentences, and accepted answers in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_edit.evaluation.matching import first_sentence, mentions, normalised


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Port of Amber!", "port of amber"),
        ("  a\tB \n an C ", "b c"),
        ("Kolinda Grabar-Kitarović's", "kolinda grabar kitarović s"),
        ("U.S. of A.", "u s of"),
        ("1,000,000 km, 1,5 and 3.14.", "1000000 km 1 5 and 3.14"),
        ("-5 to \N{MINUS SIGN}3, F-16, 1990-95", "-5 to -3 f 16 1990 95"),
        ("Kitarovic\u0301", "kitarović"),  # a combining accent is part of its letter
        ("ＡＢ", "ab"),
        ("«Théâtre» — x", "théâtre x"),
        ("the", "the"),
        ("A", "a"),
        ("東京は首都", "東 京 は 首 都"),
        ("theatre", "theatre"),
    ],
)
def test_normalised(text: str, words: str) -> None:
    assert normalised(text) == words


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Paris. It is big.", "Paris."),
        ("Paris", "Paris"),
        ("\n Paris\nRome", "Paris"),
        ("It is in St. Petersburg. Or not.", "It is in St. Petersburg."),
        ("J. K. Rowling wrote it. Then more.", "J. K. Rowling wrote it."),
        ("Is it 3.5 km? Yes.", "Is it 3.5 km?"),
        ('"Rome." Then', '"Rome."'),
        ("There are 7. Then", "There are 7."),
        ("It is x. Then", "It is x."),
        ("東京。大阪", "東京。"),
        ("It was A! Then", "It was A!"),
        ("Who... me? Yes", "Who..."),
        ("", ""),
    ],
)
def test_first_sentence(text: str, first: str) -> None:
    assert first_sentence(text) == first


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("The head of state is Kolinda Grabar-Kitarović.", ["x", "Grabar-Kitarović"], True),
        ("It is France's capital.", ["france"], True),
        ("Frances was here.", ["France"], False),  # whole words
        ("Rome. No, Paris.", ["Paris"], False),  # only the first sentence
        ("He lives in the United States", ["The United States"], True),
        ("States United", ["United States"], False),
        ("anything", ["The", "!"], False),  # accepted answers without words
        ("anything", [], False),
        ("", ["x"], False),
    ],
)
def test_mentions(answer: str, accepted: list[str], right: bool) -> None:
    assert mentions(answer, accepted) is right


@given(st.text("abc the-.", max_size=20), st.text("ab c", max_size=12), st.text("ab c", max_size=12))
def test_an_answer_among_other_words_of_a_sentence_is_found(accepted: str, before: str, after: str) -> None:
    sentence = f"{before} {normalised(accepted)} {after}"
    assert mentions(sentence, [accepted]) is bool(normalised(accepted))
