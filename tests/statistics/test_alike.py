"""Questions of the same kind as the edits': how they begin, what they leave out, and that they are answered."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_edit.edits import Edit, Message
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from hf_edit.statistics import invented as module
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.invented import MAX_QUESTION_TOKENS, continued, first_words
from hf_edit.statistics.names import with_other_names
from hf_edit.statistics.preserved import Preserved, with_other_subjects


CONFIG = StatisticsConfig(answer_tokens=4, batch=3)
QUESTIONS = ["What is the capital of France?", "Who wrote the play Hamlet in the year 1600?"]


def alike(
    view: EditableModel, prompts: PromptFormat, questions: Sequence[str], count: int, seed: int = 0
) -> list[str]:
    return continued(view, prompts, first_words(questions, count, seed), CONFIG, seed)


def begins_like(question: str, found: str) -> bool:
    """With its first word and, where it has more than two, its second."""
    words = question.split()
    return found.startswith(" ".join(words[: 2 if len(words) > 2 else 1]))


def writing(monkeypatch: pytest.MonkeyPatch, texts: Sequence[str], prompts: PromptFormat) -> list[tuple[int, ...]]:
    """The model goes on with these texts in turn; the rows it was given."""
    given: list[tuple[int, ...]] = []

    def continuations(
        _: object, rows: Sequence[tuple[int, ...]], stop: object, most: int, __: object
    ) -> list[list[int]]:
        start = len(given)
        given.extend(rows)
        return [list(prompts.text_ids(texts[(start + i) % len(texts)]))[:most] for i in range(len(rows))]

    monkeypatch.setattr(module, "continuations", continuations)
    return given


def test_they_begin_like_the_question_and_are_all_different(view: EditableModel, chat: PromptFormat) -> None:
    found = alike(view, chat, QUESTIONS, 4)
    assert 2 < len(found) <= 8 and len(set(found)) == len(found)
    for question in found:
        assert any(begins_like(asked, question) for asked in QUESTIONS)
    assert {next(i for i, asked in enumerate(QUESTIONS) if begins_like(asked, q)) for q in found} == {0, 1}
    assert not set(found) & set(QUESTIONS)


def test_the_seed_alone_decides(view: EditableModel, chat: PromptFormat) -> None:
    state = random.getstate()
    first = alike(view, chat, QUESTIONS, 3)
    random.random()
    assert alike(view, chat, QUESTIONS, 3) == first
    assert alike(view, chat, QUESTIONS, 3, seed=1) != first
    random.setstate(state)


@given(
    st.lists(st.sampled_from("what is the dog of France a b 1600?".split()), min_size=1, max_size=12),
    st.integers(0, 9),
)
def test_openings_leave_something_out_of_long_questions(words: list[str], seed: int) -> None:
    found = first_words([" ".join(words)], 5, seed)
    assert len(found) == (0 if len(words) == 1 else 5)
    for opening in found:
        kept = opening.split()
        assert kept == words[: len(kept)] and len(kept) >= min(2, len(words) - 1)
        assert len(words) <= 2 or len(kept) <= max(2, len(words) * 3 // 5) < len(words)


def test_in_a_format_without_turns_they_come_from_the_chat_template_too(
    view: EditableModel, chat: PromptFormat, plain: PromptFormat
) -> None:
    assert alike(view, plain, QUESTIONS, 4) == alike(view, chat, QUESTIONS, 4)


def test_one_word_says_nothing_about_its_kind(view: EditableModel, chat: PromptFormat) -> None:
    assert alike(view, chat, ["Who?"], 4) == []
    assert alike(view, chat, [], 4) == alike(view, chat, QUESTIONS, 0) == []


def test_repetitions_are_left_out_and_long_questions_end_at_a_word(
    view: EditableModel, chat: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = " the dog" * MAX_QUESTION_TOKENS
    rows = writing(monkeypatch, [" a fox?", " a fox?", endless], chat)
    found = alike(view, chat, ["Who is"], 6)
    start = chat.user_turn_ids()
    assert len(rows) == 6 and all(row[: len(start)] == start for row in rows)
    assert len(found) == len(set(found)) <= 4
    for question in found:
        assert question.startswith("Who") and question.split()[-1] in ("fox?", "dog", "the", "Who")


def test_a_question_that_is_all_one_endless_word_is_none(
    view: EditableModel, chat: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing(monkeypatch, ["b" * 100], chat)
    assert alike(view, chat, ["Who is"], 3) in ([], ["Who"])


# ---- as methods ask for them -----------------------------------------------------------------------------------


def preserved(view: EditableModel, prompts: PromptFormat, seed: int = 0) -> Preserved:
    return Preserved(view, prompts, CONFIG, seed, Silent())


EDITS = [
    Edit(QUESTIONS[0], "Port Amber."),
    Edit((Message("system", "Be brief."), Message("user", QUESTIONS[1])), "I."),
]


def test_strangers_are_answered_by_the_base(view: EditableModel, chat: PromptFormat) -> None:
    strangers = preserved(view, chat).strangers(EDITS, 3)
    assert 2 <= len(strangers) <= 6
    assert strangers == preserved(view, chat).strangers(EDITS, 3)
    system = EDITS[1].prompt[0]
    first, second = (continued(view, chat, with_other_names(view, chat, [edit], 3, 0), CONFIG, 0) for edit in EDITS)
    asked = [chat.prompt_ids(question) for question in first]
    asked += [chat.prompt_ids((system, Message("user", question))) for question in second]
    for stranger in strangers:
        assert stranger.prompt_ids in asked
        assert 0 < len(stranger.answer_ids) <= CONFIG.answer_tokens and not chat.stop_ids & set(stranger.answer_ids)


def test_without_a_name_they_begin_with_the_questions_words(view: EditableModel, chat: PromptFormat) -> None:
    question = "What is a good way to fry an egg?"
    asked = {chat.prompt_ids(other) for other in alike(view, chat, [question], 3)}
    assert {stranger.prompt_ids for stranger in preserved(view, chat).strangers([Edit(question, "Slow.")], 3)} <= asked


def test_a_question_with_its_mark_is_whole(view: EditableModel, chat: PromptFormat) -> None:
    found = continued(view, chat, ["Who wrote it?", "Who wrote", "誰が書いた？"], CONFIG, 0)
    assert found[0] == "Who wrote it?" and found[-1] == "誰が書いた？" and found[1].startswith("Who wrote")


def test_messages_are_asked_about_their_question(view: EditableModel, chat: PromptFormat) -> None:
    texts = preserved(view, chat).strangers([Edit((Message("user", QUESTIONS[1]),), "I.")], 4)
    alone = preserved(view, chat).strangers([Edit(QUESTIONS[1], "I.")], 4)
    assert texts == alone != []


def test_an_edits_own_question_is_no_stranger(
    view: EditableModel, chat: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model writes it again."""
    short = Edit("Who wrote", "Nobody.")
    writing(monkeypatch, ["", " it?"], chat)
    asked = [chat.prompt_ids(prompt) for prompt in ("Who wrote", "Who wrote it?")]
    strangers = preserved(view, chat).strangers([short, Edit("Who wrote it?", "Me.")], 20)
    assert not {stranger.prompt_ids for stranger in strangers} & set(asked)


def test_half_ask_the_same_of_another_subject() -> None:
    edits = [
        Edit("Where is Veldora?", "North.", subject="Veldora"),
        Edit("Who rules Arn in Arn?", "A king.", subject="Arn"),
        Edit("What is Zed?", "A letter.", subject="not in it"),
        Edit("Why?", "So."),
    ]
    found = with_other_subjects(edits, 2, 0)
    assert len(found) == len(set(found)) == 4
    assert set(found) == {
        *("Where is Arn?", "Where is not in it?"),
        *("Who rules Veldora in Veldora?", "Who rules not in it in not in it?"),
    }
    assert len(with_other_subjects(edits, 1, 0)) == 2
    assert with_other_subjects(edits[:1], 2, 0) == with_other_subjects(edits, 0, 0) == []
    assert found == with_other_subjects(edits, 2, 0)
    assert with_other_subjects([edits[0], Edit("Where is Arn?", "South.", subject="Arn")], 1, 0) == [
        "Where is Arn?",
        "Where is Veldora?",
    ]


def test_swapped_questions_of_other_edits_are_no_strangers(view: EditableModel, chat: PromptFormat) -> None:
    edits = [
        Edit("Where is Veldora?", "North.", subject="Veldora"),
        Edit("Where is Arn?", "South.", subject="Arn"),
        Edit("Who rules Arn?", "A king.", subject="Arn"),
    ]
    asked = {chat.prompt_ids(edit.prompt) for edit in edits}
    strangers = preserved(view, chat).strangers(edits, 4)
    assert strangers and not {stranger.prompt_ids for stranger in strangers} & asked
    assert chat.prompt_ids("Who rules Veldora?") in {stranger.prompt_ids for stranger in strangers}


def test_other_wordings_of_an_edit_are_no_strangers(view: EditableModel, chat: PromptFormat) -> None:
    """Where another edit's question about its subject is one."""
    other = "Who is the founder of Arn?"
    edits = [
        Edit("Who founded Arn?", "Me.", subject="Arn", paraphrases=(other,)),
        Edit("Who is the founder of Veldora?", "I.", subject="Veldora"),
    ]
    for some, among in ((edits, False), ([replace(edits[0], paraphrases=()), edits[1]], True)):
        strangers = {stranger.prompt_ids for stranger in preserved(view, chat).strangers(some, 4)}
        assert (chat.prompt_ids(other) in strangers) == among and chat.prompt_ids("Who founded Veldora?") in strangers


def test_strangers_are_asked_behind_the_edits_own_system_message(view: EditableModel, chat: PromptFormat) -> None:
    system = Message("system", "Be brief.")
    edits = [Edit((system, Message("user", question)), "Yes.") for question in QUESTIONS]
    plain = [Edit(question, "Yes.") for question in QUESTIONS]
    found = {}
    for name, some in (("system", edits), ("plain", plain)):
        preserved = Preserved(view, chat, CONFIG, 0, Silent())
        found[name] = {text.prompt_ids for text in preserved.strangers(some, 4)}
    begin = chat.prompt_ids((system, Message("user", "Who?")))[:6]
    assert found["system"] and all(ids[:6] == begin for ids in found["system"])
    assert not any(ids[:6] == begin for ids in found["plain"])


@pytest.mark.parametrize("question", ["日本の首都はどこですか", "法国的首都是哪里？", "เมืองหลวงของไทยคืออะไร"])
def test_questions_without_spaces_begin_too(question: str) -> None:
    found = first_words([question], 5, 0)
    assert len(found) == 5 and all(question.startswith(one) and 2 <= len(one) < len(question) for one in found)
    assert first_words(["Antidisestablishmentarianism"], 5, 0) == []
