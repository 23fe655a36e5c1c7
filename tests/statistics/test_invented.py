"""What a model writes itself: its form, and that it is asked where the format says."""

from __future__ import annotations

from functools import partial

import pytest

from hf_edit.models.editable import EditableModel
from hf_edit.prompting import PromptFormat
from hf_edit.statistics import invented as module
from hf_edit.statistics.invented import (
    MAX_QUESTION_TOKENS,
    OPENINGS,
    invent_answers,
    invent_questions,
    invent_text,
    sampled,
)


def test_text_begins_with_any_text_token_and_is_as_long_as_asked(view: EditableModel, plain: PromptFormat) -> None:
    vocabulary = plain.plain_tokens()
    rows = invent_text(view, 70, 6, 32, vocabulary, 0)
    assert len(rows) == 70 and {len(row) for row in rows} == {6}
    first = {row[0] for row in rows}
    assert first <= set(vocabulary) and len(first) > 40


def test_questions_are_different_and_half_begin_like_short_ones(
    view: EditableModel, chat: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that come out twice or do not end are asked for again."""
    prompted: list[tuple[int, ...]] = []
    word, other = chat.text_ids(" a")[0], chat.text_ids(" b")[0]

    def answered(_: object, rows: list[tuple[int, ...]], stop_ids: object, most: int, __: object) -> list[list[int]]:
        assert stop_ids == chat.stop_ids and most == MAX_QUESTION_TOKENS
        prompted.extend(rows)
        fixed = {0: [word] * most, 1: [], 2: [word], 3: [other], 4: [word], 5: [other, word]}
        start = len(prompted) - len(rows)
        return [fixed.get(start + i, [word, word, *[other] * (start + i)]) for i in range(len(rows))]

    monkeypatch.setattr(module, "continuations", answered)
    questions = invent_questions(view, chat, 6, 4, 0)
    start = chat.user_turn_ids()
    openings = [chat.decode(row[len(start) :]) for row in prompted]
    assert all(row[: len(start)] == start for row in prompted)
    assert openings[:6] == ["", OPENINGS[0], "", OPENINGS[1], "", OPENINGS[2]]
    assert openings[6:] == ["", OPENINGS[0], ""]  # 0 did not end, 1 was empty, 4 the same as 2
    assert len(questions) == len(set(questions)) == 6


def test_without_a_chat_template_a_question_ends_with_its_mark_or_its_line(
    view: EditableModel, plain: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain.tokenizer.chat_template = None
    prompted: list[tuple[int, ...]] = []
    texts = iter([" the dog? a b", " a b\n c d", " a" * MAX_QUESTION_TOKENS, " dog"] + [" b?", " a?"] * 8)

    def continuations(_: object, rows: list[tuple[int, ...]], stop: object, most: int, __: object) -> list[list[int]]:
        prompted.extend(rows)
        return [list(plain.text_ids(next(texts)))[:most] for _ in rows]

    monkeypatch.setattr(module, "continuations", continuations)
    found = invent_questions(view, plain, 4, 4, 0)
    assert [plain.decode(row) for row in prompted[:4]] == list(OPENINGS[:4])
    assert found[:3] == [f"{OPENINGS[0]} the dog?", f"{OPENINGS[1]} a b", f"{OPENINGS[3]} dog"]
    assert found[3:] == [f"{OPENINGS[2]} b?"]  # asked for again: it did not end


def test_an_answer_follows_its_question_and_leaves_out_the_end_of_the_turn(
    view: EditableModel, chat: PromptFormat
) -> None:
    questions = ["Who?", "What is the capital of France?", "a"]
    talks = invent_answers(view, chat, questions, 12, 2, partial(sampled, 0))
    assert [talk.prompt_ids for talk in talks] == [chat.prompt_ids(question) for question in questions]
    assert all(len(talk.answer_ids) <= 12 and not chat.stop_ids & set(talk.answer_ids) for talk in talks)


def test_a_model_that_never_ends_its_turn_invents_no_question(
    view: EditableModel, chat: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "continuations", lambda _, rows, __, most, ___: [[40] * most for _ in rows])
    assert invent_questions(view, chat, 5, 3, 0) == []
