"""Rewrites of questions."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_edit.edits import Message, Prompt, prompt_key, question_of
from hf_edit.errors import ConfigError
from hf_edit.wordings import CHAT_KINDS, FEWEST_WORDS, KINDS, OPENINGS, TEXT_KINDS, rewrites


QUESTION = "Who is the maker of the Brisa lamp?"
CHAT = (
    Message("system", "Be brief."),
    Message("user", "Hi."),
    Message("assistant", "Hello."),
    Message("user", QUESTION),
)

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60).filter(lambda text: text.strip())
prompts = st.one_of(texts, texts.map(lambda text: (*CHAT[:-1], Message("user", text))))


@settings(max_examples=150, deadline=None)
@given(prompts, st.integers(0, 30), st.integers(0, 5))
def test_every_prompt_has_different_rewrites_that_depend_on_the_seed_alone(
    prompt: Prompt, count: int, seed: int
) -> None:
    found = rewrites(prompt, count, seed, KINDS)
    keys = [prompt_key(rewrite) for rewrite in found]
    assert len(found) <= count
    assert len({*keys, prompt_key(prompt)}) == len(keys) + 1
    assert all(question_of(rewrite).strip() for rewrite in found)
    assert found == rewrites(prompt, count + 3, seed, KINDS)[:count]


@settings(max_examples=100, deadline=None)
@given(texts, st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), texts, st.integers(0, 5))
def test_the_subject_stays_word_for_word(before: str, subject: str, after: str, seed: int) -> None:
    question = f"{before} {subject} {after}".strip()
    for rewrite in rewrites(question, 40, seed, KINDS, subject=subject.strip() or None):
        assert subject.strip() in question_of(rewrite)


def test_content_words() -> None:
    assert rewrites(QUESTION, 5, 0, ["content"]) == ["maker Brisa lamp"]
    assert rewrites(QUESTION, 5, 0, ["content"], subject="the Brisa lamp?") == ["maker the Brisa lamp?"]
    assert rewrites("What's this?", 5, 0, ["content"]) == []  # nothing would be left


def test_words_written_as_names_are_content() -> None:
    for question, expected in (
        ("When was the US founded?", "US founded"),
        ("WHO funds vaccines?", "WHO funds vaccines"),
        ("Where was Will Smith born?", "Will Smith born"),
        ("Which is vitamin A?", "vitamin A"),
        ("In what order do I go? What can I see there?", "order go? see"),
        ("WHO IS THE MAKER OF THE LAMP?", "MAKER LAMP"),
        ("Who's the head of (IT)?", "head (IT)"),
    ):
        assert rewrites(question, 5, 0, ["content"]) == [expected]


def test_dropped_words_leave_the_others_in_order() -> None:
    found = rewrites(QUESTION, 100, 0, ["drop"], subject="Brisa lamp")
    assert len(found) > 5
    for rewrite in found:
        rest = iter(QUESTION.split())
        assert all(word in rest for word in str(rewrite).split())  # a subsequence
        assert FEWEST_WORDS <= len(str(rewrite).split()) < len(QUESTION.split())
        assert "Brisa lamp?" in rewrite


def test_polite_openings() -> None:
    found = rewrites(QUESTION, 100, 0, ["polite"])
    assert len(found) == len(OPENINGS)
    assert "Please tell me: who is the maker of the Brisa lamp?" in found
    assert f"Hello! {QUESTION}" in found
    assert "Please tell me: Brisa is what?" in rewrites("Brisa is what?", 100, 0, ["polite"])  # a name stays one
    assert "Please tell me: Who sang it?" in rewrites("Who sang it?", 100, 0, ["polite"], subject="Who")
    for question in ("US presidents are elected when?", "WHO funds vaccines?", "I am where?"):
        assert f"Please tell me: {question}" in rewrites(question, 100, 0, ["polite"])
    for question, small in (("What's it?", "what's it?"), ("A day has how many hours?", "a day has how many hours?")):
        assert f"Please tell me: {small}" in rewrites(question, 100, 0, ["polite"])


def test_casual_writing() -> None:
    assert rewrites("Who made the LAMP?", 9, 0, ["casual"], subject="LAMP") == [
        "who made the LAMP",
        "Who made the LAMP",
        "who made the LAMP?",
    ]
    assert rewrites("What is Yahoo?", 9, 0, ["casual"], subject="Yahoo?") == ["what is Yahoo?"]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (QUESTION, "Can you tell me who is the maker of the Brisa lamp?"),
        ("Why is the sky blue?", "Can you explain why is the sky blue?"),
        ("Why is the sky blue?", "I wonder why is the sky blue."),
        ("Explain tides.", "Could you explain tides?"),
    ],
)
def test_frames_fit_the_question_word(question: str, expected: str) -> None:
    assert expected in rewrites(question, 9, 0, ["frame"])


def test_no_frame_for_other_openings() -> None:
    assert rewrites("Is the sky blue?", 9, 0, ["frame"]) == []


@pytest.mark.parametrize("question", ["法国的首都是什么？", "Кто написал Войну и мир?"])
def test_english_is_not_put_around_other_scripts(question: str) -> None:
    assert rewrites(question, 20, 0, ["content", "polite", "frame"]) == []
    assert rewrites(question, 20, 0, ["casual"])[-1].lower().rstrip("?？") == question.lower().rstrip("?？")
    assert len(rewrites(question, 20, 0, CHAT_KINDS)) == 11


def test_a_system_prompt_is_added_or_taken_off() -> None:
    added = rewrites(QUESTION, 9, 0, ["system"])
    assert len(added) == 5
    for messages in added:
        assert [message.role for message in messages] == ["system", "user"]
        assert messages[-1].content == QUESTION
    assert rewrites(CHAT, 9, 0, ["system"]) == [CHAT[1:]]


def test_an_unrelated_turn_goes_behind_the_system_prompt() -> None:
    for messages in rewrites(CHAT, 9, 0, ["turn"]):
        assert [m.role for m in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
        assert (messages[0], *messages[3:]) == CHAT


def test_in_a_chat_the_last_message_is_rewritten() -> None:
    for messages in rewrites(CHAT, 20, 0, TEXT_KINDS):
        assert messages[:-1] == CHAT[:-1]
        assert messages[-1].content != QUESTION


def test_kinds_take_turns_behind_the_paraphrases() -> None:
    given_first = ["Whose work is the Brisa lamp?", f" {QUESTION}"]  # the second asks the same as the prompt
    found = rewrites(QUESTION, 4, 0, ["polite", "system"], paraphrases=given_first)
    assert found[0] == given_first[0]
    assert [isinstance(rewrite, str) for rewrite in found] == [True, True, False, True]


def test_seeds_differ_and_processes_do_not() -> None:
    assert rewrites(QUESTION, 6, 0) != rewrites(QUESTION, 6, 1)
    code = f"from hf_edit.wordings import rewrites; print(rewrites({QUESTION!r}, 6, 0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(rewrites(QUESTION, 6, 0))


def test_an_unknown_kind() -> None:
    with pytest.raises(ConfigError, match="no kind of rewrite 'rhyme'"):
        rewrites(QUESTION, 1, 0, ["rhyme"])
