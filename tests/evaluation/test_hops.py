"""Questions that follow from edits: asked freely, judged by what is mentioned, with and without the facts."""

from __future__ import annotations

import pytest

from hf_edit.edits import Message
from hf_edit.evaluation.hops import Hop, Reply, replies
from hf_edit.prompting import PromptFormat
from tests.evaluation.parrot import parrot
from tests.tiny import tiny_tokenizer


@pytest.fixture
def plain() -> PromptFormat:
    return PromptFormat.of("plain", tiny_tokenizer())


def test_replies_are_verbatim_and_right_where_an_alias_is_mentioned(plain: PromptFormat) -> None:
    model = parrot(plain, [("Where", "is the dog"), ("7", "x y. z")])
    hops = [Hop("Where", ("cat", "DOG!")), Hop("7", ("z",)), Hop("Where", ("Port Amber",))]
    assert replies(model, plain, hops) == [
        Reply("is the dog", True),
        Reply("x y. z", False),  # in its second sentence
        Reply("is the dog", False),
    ]
    assert replies(model, plain, hops, max_new_tokens=2, batch=1)[0] == Reply("is the", False)


def test_facts_are_told_in_front_of_the_question() -> None:
    assert Hop("Who?", ("x",)).given("X is it.") == Hop("X is it.\nWho?", ("x",))
    system, user = Message("system", "Be brief."), Message("user", "Who?")
    told = Hop((system, user), ("x",)).given("X is it.")
    assert told == Hop((system, Message("user", "X is it.\nWho?")), ("x",))
