"""Second moments against the plain mean of k k^T over the same tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hf_edit.errors import HfEditWarning, StatisticsError
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from hf_edit.statistics import collect as module
from hf_edit.statistics.collect import collect
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.moments import SecondMoments
from tests.snapshots import changed, snapshot
from tests.tiny import CORPUS


OWN = {"text": "self", "tokens": 240, "length": 12, "batch": 4}


def keys_of(view: EditableModel, linear: EditableLinear, ids: Tensor) -> Tensor:
    """Inputs of the linear over (B, T) tokens, (B, T, d_in) float64, by a plain hook."""
    seen: list[Tensor] = []
    handle = linear.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        view.model(input_ids=ids)
    handle.remove()
    return seen[0].reshape(*ids.shape, -1).double()


def same(first: SecondMoments, second: SecondMoments) -> bool:
    one, other = (
        {(part, name): matrix for part, matrices in moments.matrices.items() for name, matrix in matrices.items()}
        for moments in (first, second)
    )
    return (
        first.tokens == second.tokens
        and one.keys() == other.keys()
        and all(torch.equal(one[k], other[k]) for k in one)
    )


def test_a_text_file(view: EditableModel, plain: PromptFormat, text: Path) -> None:
    """Whole sequences of the file, in batches, until there are enough tokens."""
    config = StatisticsConfig(text=str(text), tokens=250, length=16, batch=3)
    found = collect(view, plain, view.linears, config, 0, Silent())
    assert found.tokens == {"text": 288} and found.source == str(text)  # 6 batches of 48
    ids = torch.tensor(plain.text_ids(text.read_text())[:288]).reshape(18, 16)
    for linear in view.linears:
        keys = keys_of(view, linear, ids).flatten(0, 1)
        matrix = found.matrices["text"][linear.name].double()
        torch.testing.assert_close(matrix, keys.T @ keys / 288, rtol=1e-4, atol=1e-6)


def test_a_text_that_ends_before_there_are_enough_tokens(view: EditableModel, plain: PromptFormat, text: Path) -> None:
    total = len(plain.text_ids(text.read_text()))
    config = StatisticsConfig(text=str(text), tokens=10**6, length=50, batch=100)
    assert collect(view, plain, view.linears[:1], config, 0, Silent()).tokens == {"text": total // 50 * 50}


def test_without_a_number_it_is_five_tokens_per_input(view: EditableModel, plain: PromptFormat) -> None:
    config = StatisticsConfig(length=8, batch=8)  # 5 * 56 tokens, in whole batches of 64
    assert collect(view, plain, view.linears[:1], config, 0, Silent()).tokens == {"text": 5 * 64}


def test_all_linears_at_once_are_each_alone(view: EditableModel, chat: PromptFormat) -> None:
    config = StatisticsConfig(**OWN, conversations=4, answer_tokens=6)
    together = collect(view, chat, view.linears[1:3], config, 0, Silent())
    for linear in view.linears[1:3]:
        alone = collect(view, chat, [linear], config, 0, Silent())
        assert alone.tokens == together.tokens
        for part in ("text", "prompt", "answer"):
            assert torch.equal(alone.matrices[part][linear.name], together.matrices[part][linear.name])


def test_the_parts_of_conversations(view: EditableModel, chat: PromptFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prompt` is over the last token of each question, `answer` over what comes behind it."""
    talks = [([5, 9, 11, 40, 41], 3), ([7, 8], 2), ([30, 31, 32, 33], 3)]
    monkeypatch.setattr(module, "invent_questions", lambda *_: ["a", "b", "c"])
    monkeypatch.setattr(module, "invent_answers", lambda *_: iter(talks))
    linear = view.linears[2]
    found = collect(view, chat, [linear], StatisticsConfig(**OWN), 0, Silent())
    assert found.tokens == {"text": 240, "prompt": 3, "answer": 3}
    keys = [keys_of(view, linear, torch.tensor([ids]))[0] for ids, _ in talks]
    last = torch.stack([k[start - 1] for k, (_, start) in zip(keys, talks, strict=True)])
    rest = torch.cat([k[start:] for k, (_, start) in zip(keys, talks, strict=True)])
    for part, expected in (("prompt", last), ("answer", rest)):
        matrix = found.matrices[part][linear.name].double()
        torch.testing.assert_close(matrix, expected.T @ expected / 3, rtol=1e-4, atol=1e-6)


def test_counts_of_invented_conversations(view: EditableModel, chat: PromptFormat) -> None:
    config = StatisticsConfig(**OWN, conversations=3, answer_tokens=5)
    tokens = collect(view, chat, view.linears[:1], config, 0, Silent()).tokens
    assert tokens["prompt"] == 3 and 0 < tokens["answer"] <= 15


def test_only_the_chat_format_has_conversations(view: EditableModel, plain: PromptFormat, chat: PromptFormat) -> None:
    assert set(collect(view, plain, view.linears[:1], StatisticsConfig(**OWN), 0, Silent()).tokens) == {"text"}
    config = StatisticsConfig(**OWN, conversations=0)
    assert set(collect(view, chat, view.linears[:1], config, 0, Silent()).tokens) == {"text"}


def test_what_the_model_writes_depends_on_the_seed_alone(view: EditableModel, chat: PromptFormat) -> None:
    config = StatisticsConfig(**OWN, conversations=3, answer_tokens=5)
    first = collect(view, chat, view.linears[:2], config, 0, Silent())
    torch.rand(5)
    assert same(first, collect(view, chat, view.linears[:2], config, 0, Silent()))
    assert not same(first, collect(view, chat, view.linears[:2], config, 1, Silent()))


def test_the_models_own_generation_settings_do_not_matter(view: EditableModel, chat: PromptFormat) -> None:
    config = StatisticsConfig(**OWN, conversations=3, answer_tokens=5)
    first = collect(view, chat, view.linears[:1], config, 0, Silent())
    view.model.generation_config.no_repeat_ngram_size = 1
    view.model.generation_config.repetition_penalty = 3.0
    view.model.generation_config.min_p = 0.5
    assert same(first, collect(view, chat, view.linears[:1], config, 0, Silent()))


def test_the_caller_notices_nothing(view: EditableModel, chat: PromptFormat) -> None:
    view.model.train()
    before = snapshot(view.model)
    collect(view, chat, view.linears, StatisticsConfig(**OWN, conversations=2, answer_tokens=3), 0, Silent())
    assert changed(before, snapshot(view.model)) == []


def test_too_few_tokens_are_warned_of(view: EditableModel, plain: PromptFormat) -> None:
    config = StatisticsConfig(tokens=100, length=10, batch=10)
    with pytest.warns(HfEditWarning, match=r"100 tokens for linears with 56 inputs.*at least 224"):
        collect(view, plain, view.linears[:1], config, 0, Silent())


def test_a_model_that_invents_no_question_is_warned_of(
    view: EditableModel, chat: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "invent_questions", lambda *_: [])
    with pytest.warns(HfEditWarning, match="invented no question"):
        found = collect(view, chat, view.linears[:1], StatisticsConfig(**OWN), 0, Silent())
    assert found.tokens == {"text": 240}


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
        collect(view, plain, view.linears, StatisticsConfig(text=str(path), length=16), 0, Silent())
    assert "file.txt" in caught.value.message


@pytest.mark.parametrize("text", ["A text instead of a path. " * 300, "nul\0byte", "."])
def test_what_is_no_file(view: EditableModel, plain: PromptFormat, text: str) -> None:
    with pytest.raises(StatisticsError, match="cannot be read") as caught:
        collect(view, plain, view.linears, StatisticsConfig(text=text), 0, Silent())
    assert len(caught.value.message) < 300


def test_a_dataset(view: EditableModel, plain: PromptFormat, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []

    def load_dataset(name: str, configuration: str | None, *, split: str) -> dict[str, list[str]]:
        asked.append((name, configuration, split))
        return {"text": CORPUS * 2}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    amount = {"tokens": 250, "length": 16, "batch": 3}
    config = StatisticsConfig(text="dataset:someone/texts:en:train:text", **amount)
    found = collect(view, plain, view.linears[:1], config, 0, Silent())
    assert found.source == config.text

    file = StatisticsConfig(text=str(text), **amount)
    assert same(found, collect(view, plain, view.linears[:1], file, 0, Silent()))
    collect(view, plain, view.linears[:1], StatisticsConfig(text="dataset:texts::test:text", tokens=250), 0, Silent())
    assert asked == [("someone/texts", "en", "train"), ("texts", None, "test")]


def test_datasets_that_cannot_be_had(
    view: EditableModel, plain: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise ValueError("no such split")

    def from_dataset(spec: str) -> None:
        collect(view, plain, view.linears, StatisticsConfig(text=spec), 0, Silent())

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
