"""A borrowed model comes back as it was, whatever happens."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_edit.errors import UnsupportedModelError
from hf_edit.models.borrow import borrowed
from tests.snapshots import changed, snapshot
from tests.tiny import OTHERS, tiny_model


IDS = torch.arange(2, 14)[None]


def lived_in_model() -> torch.nn.Module:
    """Flags of both kinds, a hook and a replaced forward."""
    model = tiny_model("gpt2").train()
    model.transformer.h[1].eval()
    model.transformer.wte.weight.requires_grad_(False)
    model.transformer.h[2].mlp.c_fc.weight.requires_grad_(False)
    model.transformer.h[0].register_forward_hook(lambda *_: None)
    block = model.transformer.h[3]
    own = block.forward
    block.forward = lambda *args, **kwargs: own(*args, **kwargs)
    return model


def draw() -> None:
    random.random()
    np.random.rand()
    torch.rand(1)


def test_inside_the_model_is_frozen_and_evaluates() -> None:
    model = lived_in_model()
    with borrowed(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_afterwards_all_is_as_before(error: type[BaseException] | None) -> None:
    model = lived_in_model()
    handle = None

    def interrupt(*_: object) -> None:
        draw()
        if error is not None:
            raise error

    handle = model.transformer.h[2].register_forward_hook(interrupt)
    before = snapshot(model)
    try:
        with borrowed(model):
            draw()
            torch.manual_seed(7)
            model(IDS)
    except BaseException as raised:
        assert type(raised) is error
    else:
        assert error is None
    assert changed(before, snapshot(model)) == []
    handle.remove()


def test_loans_nest() -> None:
    model = lived_in_model()
    before = snapshot(model)
    with borrowed(model):
        with borrowed(model):
            pass
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert changed(before, snapshot(model)) == []


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_flow_inside_whatever_the_callers_mode(mode: type) -> None:
    model = lived_in_model()
    before = snapshot(model)
    with mode():
        with borrowed(model):
            x = torch.ones(3, requires_grad=True)
            x.square().sum().backward()
            assert x.grad is not None and not torch.ones(1).is_inference()
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert changed(before, snapshot(model)) == []


def test_a_model_made_in_inference_mode_is_refused_untouched() -> None:
    """Autograd cannot run through its tensors, and its flags could not be set back."""
    with torch.inference_mode():
        model = tiny_model().train()
        before = snapshot(model)
        with pytest.raises(UnsupportedModelError, match="inference_mode"), borrowed(model):
            pass
        assert changed(before, snapshot(model)) == []


def test_a_callers_autocast_takes_no_part() -> None:
    model = tiny_model()
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with borrowed(model):
                assert torch.equal(model(input_ids=ids).logits, expected)
            assert torch.is_autocast_enabled("cpu")


def test_weights_that_a_model_scales_by_itself_come_back() -> None:
    config = AutoConfig.for_model("rwkv", **{**OTHERS["rwkv"], "num_hidden_layers": 8, "rescale_every": 3})
    for training in (True, False):
        model = AutoModelForCausalLM.from_config(config).train(training)
        before = snapshot(model)
        with borrowed(model):
            model(torch.arange(6)[None])
        assert changed(before, snapshot(model)) == [] and model.training == training
