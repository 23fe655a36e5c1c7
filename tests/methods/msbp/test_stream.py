"""The parts of a stream: what it keeps, what it hands out, what a refused step leaves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hf_edit.methods.msbp.method import EMSEdit, Mend
from hf_edit.methods.msbp.proposal import Normaliser, Place, places
from hf_edit.methods.msbp.stream import Step, Stream, Transformer
from hf_edit.methods.training.texts import Text, prepared
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.prompting import Encoded
from hf_edit.solvers.low_rank import LowRankDelta
from tests.snapshots import changed, snapshot
from tests.tiny import tiny_model


TEXTS = [
    Encoded((7, 9, 11, 40, 41, 42, 5), 3),
    Encoded((30, 31), 1),
    Encoded((60, 61, 62, 63, 64, 65, 5), 4),
]


@pytest.fixture
def view() -> Iterator[EditableModel]:
    view = EditableModel.of(tiny_model())
    with borrowed(view.model):
        yield view


def stream_of(view: EditableModel, at_once: int = 32) -> tuple[Stream, list[Text]]:
    linears = view.linears[2:]
    stream = Stream(view, linears, EMSEdit.rule, [Transformer(Normaliser.empty(linears))], 1.0, at_once)
    return stream, prepared(view, TEXTS, linears[0].layer)


def step_of(stream: Stream, texts: list[Text], size: float) -> Step:
    captured = stream.captured(texts)
    return Step(captured, stream.proposals(0, captured), size)


def test_linears_of_one_shape_are_counted_apart_from_those_of_another(view: EditableModel) -> None:
    attention = view.linears_named(["model.layers.2.self_attn.o_proj"])
    found = places([view.linears[2], *attention, view.linears[3]])
    assert list(found.values()) == [Place((32, 56), 0), Place((32, 32), 0), Place((32, 56), 1)]


def test_the_normaliser_takes_in_every_linear_before_any_is_standardised(view: EditableModel) -> None:
    stream, texts = stream_of(view)
    captured = stream.captured(texts)
    stream.proposals(0, captured)
    normaliser = stream.transformers[0].normaliser
    rows = torch.cat(
        [torch.cat([captured.keys[linear.name], captured.gradients[linear.name]], 1) for linear in stream.linears]
    )
    (moments,) = normaliser.moments.values()
    assert moments.count == len(rows)
    torch.testing.assert_close(moments.mean, rows.double().mean(dim=0))
    standardised = torch.cat(
        [normaliser.rows(captured, name, place, centred=True) for name, place in stream.places.items()]
    )
    torch.testing.assert_close(standardised.mean(dim=0), torch.zeros(rows.shape[1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(standardised.std(dim=0), torch.ones(rows.shape[1]), rtol=1e-4, atol=0)


def test_a_proposal_is_linear_in_the_step_size(view: EditableModel) -> None:
    """And two steps in one place add up."""
    stream, texts = stream_of(view)
    captured = stream.captured(texts)
    proposals = stream.proposals(0, captured)
    one, three = Step(captured, proposals, 1.0).deltas(), Step(captured, proposals, 3.0).deltas()
    for name, delta in one.items():
        torch.testing.assert_close(three[name].dense(), 3 * delta.dense(), rtol=1e-5, atol=1e-5)
        assert delta.rank == len(captured.losses)
    stream.take(Step(captured, proposals, 1.0))
    stream.take(Step(captured, proposals, 2.0))
    for name, delta in three.items():
        assert stream.deltas[name].B.dtype == torch.float32
        torch.testing.assert_close(stream.deltas[name].dense().double(), delta.dense(), rtol=1e-4, atol=1e-6)


def test_a_refused_step_leaves_nothing(view: EditableModel) -> None:
    stream, texts = stream_of(view)
    stream.take(step_of(stream, texts, 0.0))
    assert stream.deltas == {}
    stream.take(step_of(stream, texts, 1.0))
    before = dict(stream.deltas)
    stream.take(step_of(stream, texts, 0.0))
    assert stream.deltas == before


def test_an_update_is_never_wider_than_the_weight(view: EditableModel) -> None:
    """However many steps: once the rank passes the smaller side, 32, the product is held in its place."""
    stream, texts = stream_of(view)
    total = {linear.name: torch.zeros(linear.d_out, linear.d_in) for linear in stream.linears}
    for _ in range(4):
        step = step_of(stream, texts, 0.01)
        total = {name: change + step.deltas()[name].dense().float() for name, change in total.items()}
        stream.take(step)
    for name, change in total.items():
        assert stream.deltas[name].rank == 32
        torch.testing.assert_close(stream.deltas[name].dense(), change, rtol=1e-4, atol=1e-6)


def test_keys_and_judgements_are_of_the_model_as_it_is_now(view: EditableModel) -> None:
    """In the order of the texts, whatever runs together; the model itself stays as it is."""
    before = snapshot(view.model)
    generator = torch.Generator().manual_seed(0)
    for at_once in (1, 2, 32):
        stream, texts = stream_of(view, at_once)
        for place in range(2):
            captured = stream.captured(texts)
            keys = stream.keys(texts)
            for name, rows in captured.keys.items():
                torch.testing.assert_close(keys[name], rows, rtol=1e-4, atol=1e-5)
            losses, right = stream.judged(texts)
            expected = [float(captured.losses[captured.texts == i].mean()) for i in range(len(texts))]
            assert losses == pytest.approx(expected, rel=1e-4) and len(right) == len(texts)
            B, A = torch.randn(32, 2, generator=generator), torch.randn(2, 56, generator=generator)
            stream.deltas = {stream.linears[0].name: LowRankDelta(0.2 * B, A)}
            assert place == 0 or keys[stream.linears[1].name].shape == (len(captured.losses), 56)
    assert changed(before, snapshot(view.model)) == []


def test_right_is_every_token_of_the_answer(view: EditableModel) -> None:
    stream, _ = stream_of(view)
    ids = [7, 9, 11]
    for _ in range(4):
        ids.append(int(view.logits(torch.tensor([ids]))[0, -1].argmax()))
    wrong = [*ids[:-1], (ids[-1] + 1) % 500]
    texts = prepared(view, [Encoded(tuple(ids), 3), Encoded(tuple(wrong), 3)], stream.first)
    assert stream.judged(texts)[1] == [True, False]


def test_rank_one_updates_are_summed_without_a_solve(view: EditableModel) -> None:
    linears = view.linears[2:]
    stream = Stream(view, linears, Mend.rule, [Transformer(Normaliser.empty(linears))], 1.0, 32)
    step = step_of(stream, prepared(view, TEXTS, 2), 0.5)
    normaliser = stream.transformers[0].normaliser
    for name, delta in step.deltas().items():
        rows = normaliser.rows(step.captured, name, stream.places[name], centred=False)
        expected = sum(-0.5 * torch.outer(row[56:], row[:56]) for row in rows)
        torch.testing.assert_close(delta.dense(), expected, rtol=1e-4, atol=1e-4)
