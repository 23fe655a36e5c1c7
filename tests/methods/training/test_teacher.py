"""The divergence to the base, and what it is taken over."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hf_edit.edits import Edit, Message
from hf_edit.methods.training.teacher import LIKELIEST, Known, Teacher, divergence, untaught
from hf_edit.methods.training.texts import Batch, Text, answer_logits, prepared
from hf_edit.models.editable import EditableModel
from hf_edit.prompting import Encoded, PromptFormat
from tests.tiny import tiny_tokenizer


FIRST = 2


def heard(logits: Tensor) -> list[Known]:
    """As if the base had said this, in two texts."""
    text = Text(torch.zeros(2, dtype=torch.long), torch.zeros(2, 1), 1)
    likeliest = logits.float().log_softmax(-1).topk(min(LIKELIEST, logits.shape[-1]))
    parts = zip(likeliest.values.tensor_split(2), likeliest.indices.tensor_split(2), strict=True)
    return [Known(text, *part) for part in parts]


def dense_kl(base: Tensor, model: Tensor) -> float:
    p, q = base.double().log_softmax(-1), model.double().log_softmax(-1)
    return float(F.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean())


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([2, 60, 64, 65, 500]), st.floats(0, 12), st.floats(0, 4), st.integers(0, 1000))
def test_the_divergence_is_zero_for_equals_and_never_above_the_dense_one(
    vocabulary: int, spread: float, change: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = spread * torch.randn(6, vocabulary, generator=generator)
    model = base + change * torch.randn(6, vocabulary, generator=generator)
    known = heard(base)
    assert float(divergence(base, known)) == pytest.approx(0, abs=1e-6)
    found, exact = float(divergence(model, known)), dense_kl(base, model)
    assert -1e-5 <= found <= exact * 1.001 + 1e-4
    if vocabulary <= LIKELIEST:
        assert found == pytest.approx(exact, rel=1e-3, abs=1e-4)


def test_the_divergence_is_close_to_the_dense_one_where_the_rest_is_rare() -> None:
    base = 5 * torch.randn(20, 3000)
    model = base + 0.5 * torch.randn(20, 3000)
    assert float(divergence(model, heard(base))) == pytest.approx(dense_kl(base, model), rel=0.1)


def test_the_divergence_is_felt_by_all_tokens() -> None:
    """Also by those that are not listed, through their sum; and where the base is certain."""
    base = torch.zeros(1, 200)
    base[0, :LIKELIEST] = 3
    model = base.clone().requires_grad_()
    (grad,) = torch.autograd.grad(divergence(model + torch.linspace(0, 2, 200), heard(base)), model)
    assert (grad[0, LIKELIEST:] > 0).all()
    certain = torch.zeros(1, 200)
    certain[0, 7] = 200
    model = torch.zeros(1, 200, requires_grad=True)
    value = divergence(model, heard(certain))
    assert float(value.detach()) == pytest.approx(torch.tensor(200.0).log().item(), rel=1e-3)
    assert torch.isfinite(torch.autograd.grad(value, model)[0]).all()


def test_what_the_base_says_is_learned_once_and_of_each_text_alone(view: EditableModel, talks: list[Encoded]) -> None:
    teacher = Teacher(view, [talks], FIRST)
    first = teacher.drawn(100, torch.Generator().manual_seed(0))
    assert len(first) == len(talks) == len({id(one) for one in first})
    for one in first:
        (encoded,) = (t for t in talks if list(t.ids) == one.text.ids.tolist())
        expected = view.logits(torch.tensor([encoded.ids]))[0, encoded.answer_start - 1 : -1].log_softmax(-1)
        assert one.log_probs.shape == (len(encoded.answer_ids), LIKELIEST) and not one.log_probs.requires_grad
        assert torch.allclose(one.log_probs, expected.gather(-1, one.tokens), atol=1e-4)
        assert (one.log_probs[:, -1] >= expected.topk(LIKELIEST + 1).values[:, -1] - 1e-4).all()
    again = teacher.drawn(100, torch.Generator().manual_seed(1))
    assert {id(one) for one in again} == {id(one) for one in first}
    others = Teacher(view, [talks[2:], talks[:2]], FIRST).drawn(100, torch.Generator().manual_seed(2))
    by_text = {tuple(one.text.ids.tolist()): one for one in others}
    assert all(torch.equal(one.log_probs, by_text[tuple(one.text.ids.tolist())].log_probs) for one in first)


def test_the_base_diverges_from_itself_by_nothing(view: EditableModel, talks: list[Encoded]) -> None:
    known = Teacher(view, [talks], FIRST).drawn(3, torch.Generator().manual_seed(0))
    logits = answer_logits(view, Batch.of([one.text for one in known]), FIRST)
    assert float(divergence(logits, known)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("sizes", "count", "possible"),
    [
        ((4,), 3, {(3,)}),
        ((2, 4), 4, {(2, 2)}),
        ((3, 4), 3, {(1, 2), (2, 1)}),
        ((2, 4), 1, {(1, 0), (0, 1)}),
        ((0, 4), 3, {(0, 3)}),
        ((1, 4), 6, {(1, 3)}),
        ((0,), 3, {(0,)}),
        ((), 3, {()}),
    ],
)
def test_pools_are_drawn_from_in_turn(
    sizes: tuple[int, ...], count: int, possible: set[tuple[int, ...]], view: EditableModel, talks: list[Encoded]
) -> None:
    """As many of each as can be; which of them begins is drawn too, so that none is left out."""
    pools = [[Encoded((*t.ids, 40 + i), t.answer_start) for t in talks[:size]] for i, size in enumerate(sizes)]
    teacher, generator = Teacher(view, pools, FIRST), torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(20):
        drawn = teacher.drawn(count, generator)
        last = [int(one.text.ids[-1]) - 40 for one in drawn]
        seen.add(tuple(last.count(i) for i in range(len(sizes))))
        assert len({id(one) for one in drawn}) == len(drawn)
    assert seen == possible


def test_every_text_is_drawn_at_some_time(view: EditableModel, talks: list[Encoded]) -> None:
    teacher, generator = Teacher(view, [talks], FIRST), torch.Generator().manual_seed(0)
    seen = {tuple(one.text.ids.tolist()) for _ in range(30) for one in teacher.drawn(1, generator)}
    assert seen == {tuple(text.ids.tolist()) for text in prepared(view, talks, FIRST)}


def test_what_is_taught_is_not_held(view: EditableModel) -> None:
    """Neither an edit's question nor another wording of it, given or trained; of these a format may take not all."""
    plain = PromptFormat.of("plain", tiny_tokenizer())
    chat = (Message("system", "Be brief."), Message("user", "Who?"))
    edits = [Edit("Who wrote it?", "Me.", paraphrases=("Whose is it?", chat)), Edit("Where?", "Here.")]
    trained = prepared(view, [plain.encode("Please tell me: Where?", "Here.")], FIRST)
    asked = ("Who wrote it?", "Whose is it?", "Why?"), ("Where?", "Please tell me: Where?", "When?")
    pools = [[plain.encode(question, "Perhaps.") for question in questions] for questions in asked]
    left = untaught(pools, plain, edits, trained)
    assert left == [pools[0][2:], pools[1][2:]]
