"""What the engine runs: equal to whole forwards of each text alone."""

from __future__ import annotations

import pytest
import torch

from hf_edit.methods.training.texts import (
    TRACED_AT_ONCE,
    Batch,
    Text,
    answer_logits,
    hidden_scale,
    inputs_along,
    moments_over,
    prepared,
)
from hf_edit.models.editable import EditableModel
from hf_edit.prompting import Encoded
from tests.methods.anyedit.reference import inputs_of
from tests.tiny import tiny_model


FIRST = 2


def test_texts_enter_the_first_edited_block_as_in_a_forward_of_their_own(
    view: EditableModel, talks: list[Encoded]
) -> None:
    many = [talks[i % len(talks)] for i in range(TRACED_AT_ONCE + 3)]
    texts = prepared(view, many, FIRST)
    assert len(texts) == len(many)
    for text, encoded in zip(texts, many, strict=True):
        alone = view.trace(torch.tensor([encoded.ids]), entering=[FIRST]).entering[FIRST][0]
        assert text.ids.tolist() == list(encoded.ids) and text.start == encoded.answer_start
        assert text.labels.tolist() == list(encoded.answer_ids)
        assert torch.allclose(text.entering, alone, atol=1e-5)


def test_without_texts(view: EditableModel) -> None:
    assert prepared(view, [], FIRST) == []
    assert moments_over(view, view.linears, [], FIRST, answers=False) == {}


def test_a_batch_predicts_what_each_text_does_alone(view: EditableModel, talks: list[Encoded]) -> None:
    batch = Batch.of(prepared(view, talks, FIRST))
    expected = [view.logits(torch.tensor([t.ids]))[0, t.answer_start - 1 : -1] for t in talks]
    assert torch.allclose(answer_logits(view, batch, FIRST), torch.cat(expected), atol=1e-5)
    assert batch.labels.tolist() == [token for t in talks for token in t.answer_ids]
    counts = [len(t.answer_ids) for t in talks]
    assert 1 in counts and len(set(counts)) > 2
    assert batch.rows.tolist() == [row for row, count in enumerate(counts) for _ in range(count)]


def test_means_are_over_each_texts_own_places(view: EditableModel, talks: list[Encoded]) -> None:
    batch = Batch.of(prepared(view, talks, FIRST))
    values = torch.randn(len(batch.labels), dtype=torch.float64)
    expected = [part.mean() for part in values.split([len(t.answer_ids) for t in talks])]
    assert torch.allclose(batch.mean_per_text(values), torch.stack(expected))


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("answers", [True, False])
def test_moments_are_those_of_the_inputs_of_whole_forwards(answers: bool, family: str, talks: list[Encoded]) -> None:
    """All tokens but the last of each text, or the answers' alone: of one token, none. OPT flattens its batches."""
    view = EditableModel.of(tiny_model(family))
    linears = [view.linears[FIRST], view.linears[3]]
    found = moments_over(view, linears, prepared(view, talks, FIRST), FIRST, answers=answers)
    assert list(found) == [linear.name for linear in linears]
    for linear in linears:
        keys = [inputs_of(view.model, torch.tensor([t.ids]), linear.module)[:-1].double() for t in talks]
        rows = torch.cat([k[t.answer_start :] if answers else k for k, t in zip(keys, talks, strict=True)])
        assert found[linear.name].dtype == torch.float64
        assert torch.allclose(found[linear.name], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)


def test_inputs_come_with_their_text(view: EditableModel, talks: list[Encoded]) -> None:
    texts = prepared(view, talks, FIRST)
    for text, (given, inputs) in zip(texts, inputs_along(view, view.linears[3:], texts, FIRST), strict=True):
        assert given is text
        assert inputs[view.linears[3].name].shape == (len(text.ids) - 1, view.linears[3].d_in)


def test_the_scale_of_hidden_states_is_that_of_most_tokens(view: EditableModel, talks: list[Encoded]) -> None:
    """A first token whose state is a thousand times the others' does not count."""
    texts = prepared(view, talks[:1], 1)
    huge = torch.ones(len(talks[0].ids), 1)
    huge[0] = 1000
    plain, odd = (
        hidden_scale(view, view.linears[1:3], [Text(text.ids, text.entering * factor, text.start)], 1)
        for text in texts
        for factor in (1, huge)
    )
    assert plain / 2 < odd < 2 * plain


def test_the_scale_follows_the_hidden_states(view: EditableModel, talks: list[Encoded]) -> None:
    """Of states that outweigh what the blocks add to them."""
    (text,) = prepared(view, talks[:1], 1)
    one, ten = (
        hidden_scale(view, view.linears[1:3], [Text(text.ids, text.entering * factor, text.start)], 1)
        for factor in (1000, 10000)
    )
    assert ten == pytest.approx(10 * one, rel=0.01)
