"""Questions about other names: what a name is, what takes its place, and which kind of names the model expects."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_edit.edits import Edit
from hf_edit.models.editable import EditableModel
from hf_edit.models.loading import load_model
from hf_edit.prompting import PromptFormat
from hf_edit.statistics import names
from hf_edit.statistics.names import kind_of, kinds, name_of, names_in, with_other_names
from tests.tiny import VOCAB, tiny_model, tiny_tokenizer


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("Where was Rafael Reyes born and raised?", ["Rafael Reyes"]),
        ("Who wrote The Tale of Genji?", ["The Tale of Genji"]),
        ("Did I see Bank of America in New York City, Boston?", ["Bank of America", "New York City", "Boston"]),
        ("Marie Curie was born in", ["Marie Curie"]),
        ("The Old Man and the Sea was written by", ["Old Man and the Sea"]),
        ("Describe Paris in brief.", ["Paris"]),
        ("Where is St. Mary's?", ["St. Mary"]),
        ("Где родился Иван Петров?", ["Иван Петров"]),
        ("éclair or Élan?", ["Élan"]),
        *(
            (question, [])
            for question in ("Water boils at", "I see", "where is it", "日本の首都はどこですか", "", " ?")
        ),
    ],
)
def test_a_name_is_a_run_of_capitals(question: str, found: list[str]) -> None:
    assert names_in(question) == found


@given(st.text())
def test_a_name_stands_in_the_question(question: str) -> None:
    assert all(name and name in question for name in names_in(question))


def test_a_subject_goes_before_a_name() -> None:
    assert name_of(Edit("Where is the lake in Peru?", "There.", subject="lake")) == "lake"
    assert name_of(Edit("Where is the lake in Peru?", "There.", subject="Titicaca")) == "Peru"
    assert name_of(Edit("Where is the lake?", "There.")) is None


def test_the_name_gives_way_to_others_of_one_kind(
    view: EditableModel, chat: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "kind_of", lambda *_: "place")
    edits = [
        Edit("Who was Ada's father in the year 1820?", "A man."),
        Edit("What is the capital of Peru?", "A town."),
        Edit("Why?", "So."),
    ]
    found = with_other_names(view, chat, edits, 5, 0)
    assert found == with_other_names(view, chat, edits, 5, 0) != with_other_names(view, chat, edits, 5, 1)
    fathers, capitals = found[:5], found[5:]
    others = [opening.removeprefix("Who was ").partition("'s")[0] for opening in fathers]
    assert len(set(others)) == 5 and set(others) <= set(kinds()["place"])
    for other, opening in zip(others, fathers, strict=True):
        assert f"Who was {other}'s father in the year 1820?".startswith(opening)
        assert opening.startswith(f"Who was {other}'s father") and not opening.endswith("year")
    assert len(capitals) == 5 and all(opening.endswith("?") and "Peru" not in opening for opening in capitals)


def test_of_a_kind_there_are_only_so_many(view: EditableModel, chat: PromptFormat) -> None:
    (most,) = {len(some) for some in kinds().values()}
    found = with_other_names(view, chat, [Edit("Where is Ada now?", "Here.")], 100, 0)
    assert len(found) == len(set(found)) == most


def test_the_kind_is_the_likeliest_word(view: EditableModel, chat: PromptFormat) -> None:
    with torch.no_grad():
        ids = chat.text_ids("Where is Ada now?\nAda is a")
        logits = view.model(torch.tensor([ids])).logits[0, -1]
    firsts = {kind: chat.text_ids(f" {kind}")[0] for kind in kinds()}
    found = kind_of(view, chat, "Where is Ada now?", "Ada")
    assert logits[firsts[found]] == max(logits[first] for first in firsts.values())


@pytest.mark.slow
def test_a_real_model_knows_which_kind_fits(embedded_base: Path) -> None:
    model, tokenizer = load_model(str(embedded_base))
    view, prompts = EditableModel.of(model), PromptFormat.of(None, tokenizer)
    asked = {
        "Where was {} born and raised?": ("Rafael Ortega", "person"),
        "What is the name of {}'s father?": ("Selma Lindqvist", "person"),
        "What is the capital of {}?": ("Portugal", "place"),
        "Which river flows through {}?": ("Budapest", "place"),
        "Who is the chief executive of {}?": ("Volvo", "company"),
        "Who wrote {}?": ("Oliver Twist", "book"),
    }
    found = {question: kind_of(view, prompts, question.format(name), name) for question, (name, _) in asked.items()}
    assert sum(found[question] == kind for question, (_, kind) in asked.items()) >= 5, found


def test_what_is_asked_about_is_none_of_what_is_trained_with() -> None:
    trained, asked = kinds(), kinds("names_asked.toml")
    assert trained.keys() == asked.keys()
    for kind, some in asked.items():
        assert len(set(some)) == len(some) >= 12 and not set(some) & set(trained[kind])


def test_kinds_are_told_apart_by_tokenizers_that_mark_words(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = PromptFormat.of("plain", tiny_tokenizer("sentencepiece"))
    asked: list[int] = []

    def ran(_: object, ids: torch.Tensor) -> SimpleNamespace:
        logits = torch.zeros(1, ids.shape[1], VOCAB)
        place = prompts.encode("it is a", "place").answer_ids[0]
        asked.append(place)
        logits[..., place] = 1.0
        return SimpleNamespace(logits=logits)

    monkeypatch.setattr(names, "run", ran)
    assert kind_of(EditableModel.of(tiny_model()), prompts, "Where is Fuji?", "Fuji") == "place" and asked
