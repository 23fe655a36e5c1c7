"""What statistics are taken over: read from a file or data set, or written by the model; kept and read back."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hf_edit.edits import Edit
from hf_edit.errors import HfEditWarning, StatisticsError
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.statistics import corpus as module
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.corpus import Corpus, write_corpus
from hf_edit.statistics.preserved import Preserved
from tests.snapshots import changed, snapshot
from tests.tiny import CORPUS, tiny_model, tiny_tokenizer


OWN = {"text": "self", "tokens": 100, "length": 12, "batch": 4}


def written(view: EditableModel, prompts: PromptFormat, seed: int = 0, **settings: object) -> Corpus:
    return write_corpus(view, prompts, StatisticsConfig.from_mapping({"conversations": 0, **settings}), seed, Silent())


def same(first: Corpus, second: Corpus) -> bool:
    return torch.equal(first.text, second.text) and first.conversations == second.conversations


def test_a_text_file(view: EditableModel, plain: PromptFormat, text: Path) -> None:
    """As many whole rows from its beginning as hold the tokens wanted, whatever the batch."""
    found = written(view, plain, text=str(text), tokens=250, length=16, batch=3)
    expected = torch.tensor(plain.text_ids(text.read_text())[:256]).reshape(16, 16)
    assert torch.equal(found.text, expected) and found.source == str(text) and found.conversations == ()


def test_a_text_that_ends_before_there_are_enough_tokens(view: EditableModel, plain: PromptFormat, text: Path) -> None:
    total = len(plain.text_ids(text.read_text()))
    assert written(view, plain, text=str(text), tokens=10**6, length=50).text.shape == (total // 50, 50)


@pytest.mark.parametrize("text", ["self", "file"])
def test_without_a_number_it_is_five_tokens_per_input_of_the_widest_map(
    view: EditableModel, plain: PromptFormat, tmp_path: Path, text: str
) -> None:
    """Whichever layers will be asked for."""
    (tmp_path / "long.txt").write_text("\n".join(CORPUS) * 5, encoding="utf-8")
    source = "self" if text == "self" else str(tmp_path / "long.txt")
    assert written(view, plain, text=source, length=11, batch=8).text.shape == (26, 11)  # 5 * 56 = 280 tokens


def test_conversations(view: EditableModel, chat: PromptFormat) -> None:
    found = written(view, chat, **OWN, conversations=6, answer_tokens=5)
    assert found.text.shape == (9, 12) and 2 <= len(found.conversations) <= 6  # some questions do not end
    for talk in found.conversations:
        question = chat.decode(talk.prompt_ids[len(chat.user_turn_ids()) :])
        assert question and 0 <= len(talk.answer_ids) <= 5


def test_other_formats_put_the_same_questions_in_their_own_way(
    view: EditableModel, plain: PromptFormat, chat: PromptFormat
) -> None:
    settings = {**OWN, "conversations": 6, "answer_tokens": 5}
    found, talks = (written(view, prompts, **settings).conversations for prompts in (plain, chat))
    begun = len(chat.user_turn_ids())
    questions = [chat.decode(talk.prompt_ids[begun:]) for talk in talks]
    assert len(found) == len(talks)
    for talk, question in zip(found, questions, strict=True):
        assert question.startswith(plain.decode(talk.prompt_ids).strip())
    assert written(view, plain, **OWN).conversations == written(view, chat, **OWN).conversations == ()


def test_it_depends_on_the_seed_alone(view: EditableModel, chat: PromptFormat) -> None:
    settings = {**OWN, "conversations": 3, "answer_tokens": 5}
    first = written(view, chat, **settings)
    torch.rand(5)
    assert same(first, written(view, chat, **settings))
    other = written(view, chat, 1, **settings)
    assert not torch.equal(first.text, other.text) and first.conversations != other.conversations


def test_the_models_own_generation_settings_do_not_matter(view: EditableModel, chat: PromptFormat) -> None:
    settings = {**OWN, "conversations": 3, "answer_tokens": 5}
    first = written(view, chat, **settings)
    view.model.generation_config.no_repeat_ngram_size = 1
    view.model.generation_config.repetition_penalty = 3.0
    view.model.generation_config.min_p = 0.5
    assert same(first, written(view, chat, **settings))


def test_the_caller_notices_nothing(view: EditableModel, chat: PromptFormat) -> None:
    view.model.train()
    before = snapshot(view.model)
    written(view, chat, **OWN, conversations=2, answer_tokens=3)
    assert changed(before, snapshot(view.model)) == []


def test_a_model_that_invents_no_question_is_warned_of(
    view: EditableModel, chat: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "invent_questions", lambda *_: [])
    with pytest.warns(HfEditWarning, match="invented no question"):
        assert written(view, chat, **OWN, conversations=2).conversations == ()


@pytest.mark.parametrize("talks", [(), (Encoded((5, 9, 11), 3), Encoded((7, 8, 9, 10), 2))])
def test_its_tensors_give_it_back(talks: tuple[Encoded, ...]) -> None:
    corpus = Corpus(torch.arange(12).reshape(3, 4), talks, "here")
    again = Corpus.from_tensors(corpus.tensors(), "here")
    assert same(corpus, again) and again.source == "here"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read as UTF-8 text"),
        (b"\xff\xfe\xfa", "cannot be read as UTF-8 text"),
        (b"", "holds 0 tokens, fewer than one sequence of 16"),
        (b"too short", "tokens, fewer than one sequence of 16"),
    ],
)
def test_a_file_that_gives_nothing(
    view: EditableModel, plain: PromptFormat, tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "file.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StatisticsError, match=said) as caught:
        written(view, plain, text=str(path), length=16)
    assert "file.txt" in caught.value.message


@pytest.mark.parametrize("text", ["A text instead of a path. " * 300, "nul\0byte", "."])
def test_what_is_no_file(view: EditableModel, plain: PromptFormat, text: str) -> None:
    with pytest.raises(StatisticsError, match="cannot be read") as caught:
        written(view, plain, text=text)
    assert len(caught.value.message) < 300


def test_a_dataset(view: EditableModel, plain: PromptFormat, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []

    def load_dataset(name: str, configuration: str | None, *, split: str) -> dict[str, list[str]]:
        asked.append((name, configuration, split))
        return {"text": CORPUS * 2}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    amount = {"tokens": 250, "length": 16}
    found = written(view, plain, text="dataset:someone/texts:en:train:text", **amount)
    assert found.source == "dataset:someone/texts:en:train:text"
    assert same(found, written(view, plain, text=str(text), **amount))
    written(view, plain, text="dataset:texts::test:text", tokens=250)
    assert asked == [("someone/texts", "en", "train"), ("texts", None, "test")]


def test_datasets_that_cannot_be_had(
    view: EditableModel, plain: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise ValueError("no such split")

    def from_dataset(spec: str) -> None:
        written(view, plain, text=spec)

    with pytest.raises(StatisticsError, match="has 3 parts, not 5"):
        from_dataset("dataset:one:two")
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=unknown))
    with pytest.raises(StatisticsError, match="no such split"):
        from_dataset("dataset:a:b:c:d")
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: {"d": [1, None]}))
    with pytest.raises(StatisticsError, match="cannot be read: .*int found"):
        from_dataset("dataset:a:b:c:d")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(StatisticsError, match="needs the package datasets"):
        from_dataset("dataset:a:b:c:d")


def test_no_more_of_a_long_text_is_tokenised_than_it_takes(
    view: EditableModel, plain: PromptFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("\n".join(CORPUS) * 400)
    whole = plain.text_ids(path.read_text())
    seen: list[int] = []
    text_ids = PromptFormat.text_ids
    monkeypatch.setattr(PromptFormat, "text_ids", lambda self, text: seen.append(len(text)) or text_ids(self, text))
    corpus = written(view, plain, text=str(path), tokens=128, length=16, conversations=0)
    assert corpus.text.flatten().tolist() == list(whole[:128])
    assert max(seen) < len(path.read_text()) / 4


def test_questions_too_long_for_another_like_them_are_left_out() -> None:
    view = EditableModel.of(tiny_model("gpt2"))
    prompts = PromptFormat.of("plain", tiny_tokenizer())
    for count in (36, 38, 39):
        question = " ".join(["the quick brown fox jumps over"] * count) + " near Mount Fuji and more"
        edit = Edit(question, "Tokyo.")
        assert view.max_length is not None and len(prompts.encode(question, "Tokyo.").ids) <= view.max_length
        assert isinstance(Preserved(view, prompts, StatisticsConfig(), 0, Silent()).strangers([edit], 4), list)
