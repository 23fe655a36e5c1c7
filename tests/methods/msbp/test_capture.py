"""Captured rows are those of an ordinary backward pass through the whole model, text by text, in float64."""

from __future__ import annotations

import pytest
import torch

from hf_edit.methods.msbp.capture import Captured, capture
from hf_edit.methods.training.texts import prepared
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta
from tests.methods.msbp.reference import reference_capture
from tests.snapshots import changed, snapshot
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer


LAYERS = (1, 2, 3)
TEXTS = [
    Encoded((7, 9, 11, 40, 41, 42, 5), 3),
    Encoded((30, 31), 1),  # a prompt and an answer of one token
    Encoded((60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 5), 12),  # beyond the sliding windows
    Encoded((20, 21, 22, 23, 24), 1),  # a prompt of one token
    Encoded((50, 51, 52, 53, 5), 4),  # an answer of one token
    Encoded((8, 9, 11, 43, 41, 42, 5), 3),  # as long as the first
]


def captured(view: EditableModel, texts: list[Encoded], at_once: int = 32) -> Captured:
    with borrowed(view.model):
        first = LAYERS[0]
        linears = [view.linears[layer] for layer in LAYERS]
        return capture(view, linears, prepared(view, texts, first), first, at_once)


@pytest.mark.usefixtures("really_float64")
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_those_of_a_whole_backward_pass(family: str) -> None:
    model = tiny_model(family, dtype=torch.float64)
    view = EditableModel.of(model)
    found = captured(view, TEXTS)
    keys, gradients, losses = reference_capture(model, [view.linears[layer].name for layer in LAYERS], TEXTS)
    assert list(found.keys) == list(found.gradients) == list(keys)
    for name in keys:
        assert gradients[name].abs().max() > 1e-4
        torch.testing.assert_close(found.keys[name], keys[name], rtol=0, atol=1e-11)
        torch.testing.assert_close(found.gradients[name], gradients[name], rtol=0, atol=1e-11)
    torch.testing.assert_close(found.losses, losses, rtol=0, atol=1e-11)
    counts = [len(text.answer_ids) for text in TEXTS]
    assert found.texts.tolist() == [i for i, count in enumerate(counts) for _ in range(count)]


@pytest.mark.usefixtures("really_float64")
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_what_runs_together_does_not_matter(at_once: int) -> None:
    """Nor in which order: the loss is a sum, so that no text scales another's gradient."""
    view = EditableModel.of(tiny_model("qwen3", dtype=torch.float64))
    whole, parts = captured(view, TEXTS), captured(view, TEXTS, at_once)
    backwards = captured(view, TEXTS[::-1])
    order = torch.cat([torch.where(backwards.texts == len(TEXTS) - 1 - i)[0] for i in range(len(TEXTS))])
    for name in whole.keys:
        torch.testing.assert_close(parts.keys[name], whole.keys[name], rtol=0, atol=1e-11)
        torch.testing.assert_close(parts.gradients[name], whole.gradients[name], rtol=0, atol=1e-11)
        torch.testing.assert_close(backwards.gradients[name][order], whole.gradients[name], rtol=0, atol=1e-11)
    torch.testing.assert_close(parts.losses, whole.losses, rtol=0, atol=1e-11)
    assert torch.equal(parts.texts, whole.texts)


@pytest.mark.usefixtures("really_float64")
def test_an_update_in_place_is_seen_as_if_it_were_in_the_weights() -> None:
    """Also by the gradient of the linears below it."""
    model = tiny_model("llama", dtype=torch.float64)
    view = EditableModel.of(model)
    names = [view.linears[layer].name for layer in LAYERS]
    generator = torch.Generator().manual_seed(0)
    deltas = {
        name: LowRankDelta(*(0.3 * torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes))
        for name, shapes in zip(names, [((32, 3), (3, 56))] * len(names), strict=True)
    }
    without = captured(view, TEXTS)
    with view.updated(deltas):
        found = captured(view, TEXTS)
    with torch.no_grad():
        for name, delta in deltas.items():
            model.get_submodule(name).weight += delta.dense()
    keys, gradients, _ = reference_capture(model, names, TEXTS)
    for name in names:
        torch.testing.assert_close(found.keys[name], keys[name], rtol=0, atol=1e-11)
        torch.testing.assert_close(found.gradients[name], gradients[name], rtol=0, atol=1e-11)
        assert (found.gradients[name] - without.gradients[name]).abs().max() > 1e-3


@pytest.mark.parametrize("trainable", [True, False])
def test_the_model_is_left_alone_and_no_weight_gets_a_gradient(
    trainable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its flags were; and only activations are differentiated."""
    model = tiny_model("gpt2").train(trainable)
    model.requires_grad_(trainable)
    view = EditableModel.of(model)
    before = snapshot(model)
    asked: list[int] = []
    grad = torch.autograd.grad

    def counted(outputs: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        asked.append(len(inputs))
        assert not any(parameter.requires_grad for parameter in model.parameters())
        return grad(outputs, inputs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    found = captured(view, TEXTS, at_once=4)
    assert asked == [len(LAYERS)] * 2
    assert changed(before, snapshot(model)) == []
    tensors = [*found.keys.values(), *found.gradients.values(), found.losses]
    assert not any(tensor.requires_grad for tensor in tensors)


def test_a_model_in_half_precision_gives_rows_in_single() -> None:
    found = captured(EditableModel.of(tiny_model("llama", dtype=torch.bfloat16)), TEXTS)
    plain = captured(EditableModel.of(tiny_model("llama")), TEXTS)
    for name in found.keys:
        assert found.keys[name].dtype == found.gradients[name].dtype == found.losses.dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(found.keys[name].flatten(), plain.keys[name].flatten(), dim=0)
        assert cosine > 0.99


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize("name", ["chat", "plain", "qa"])
def test_rows_belong_to_the_tokens_before_the_answers_own(kind: str, name: str) -> None:
    """Losses are those of the answer's tokens, end of turn included, each given all before it."""
    model = tiny_model()
    view = EditableModel.of(model)
    prompts = PromptFormat(name, tiny_tokenizer(kind))
    asked = [("Who wrote Hamlet?", "William Shakespeare"), ("a", "b"), ("What is it", "Mount Fuji, in ½ the year")]
    texts = [prompts.encode(*text) for text in asked]
    found = captured(view, texts)
    row = 0
    for i, (text, (question, _)) in enumerate(zip(texts, asked, strict=True)):
        prompt = list(prompts.prompt_ids(question))
        for answered in range(len(text.ids) - len(prompt)):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *text.ids[len(prompt) : len(prompt) + answered]]])).logits
            expected = -logits[0, -1].log_softmax(-1)[text.ids[len(prompt) + answered]]
            torch.testing.assert_close(found.losses[row], expected, rtol=0, atol=2e-4)
            assert found.texts[row] == i
            row += 1
        assert text.ids[-1] == prompts.end_id
    assert row == len(found.losses)
