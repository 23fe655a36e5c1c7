"""What is found by trying a model, wherever it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

from hf_edit.models.editable import EditableModel
from tests.tiny import tiny_model


PROPERTIES = ("skips_blocks", "keeps_states", "writes_residual")
INSIDE: dict[str, Callable[[EditableModel], AbstractContextManager[object]]] = {
    "reading": lambda view: view.reading(view.linears, (5, 7)),
    "shifted": lambda view: view.shifted({view.linears[1].name: torch.ones(5, 7, view.linears[1].d_out)}),
}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("inside", INSIDE)
def test_hooks_that_are_in_place_are_of_no_consequence(family: str, inside: str) -> None:
    """They are of another batch's shape."""
    expected = {name: getattr(EditableModel.of(tiny_model(family)), name) for name in PROPERTIES}
    assert expected["skips_blocks"] and expected["keeps_states"]
    for name in PROPERTIES:
        view = EditableModel.of(tiny_model(family))
        with INSIDE[inside](view):
            assert getattr(view, name) == expected[name], name


def test_a_text_that_is_read_first_leaves_the_short_cuts_open() -> None:
    view = EditableModel.of(tiny_model("llama"))
    ids = torch.arange(1, 13).reshape(3, 4)
    kept = view.trace(ids, inputs=view.linears[:2])
    assert view.skips_blocks and view.keeps_states
    assert torch.equal(
        kept.inputs[view.linears[1].name], view.trace(ids, inputs=view.linears[:2]).inputs[view.linears[1].name]
    )


def test_a_hook_that_was_set_aside_works_again() -> None:
    view = EditableModel.of(tiny_model("llama"))
    ids, linear = torch.arange(1, 5)[None], view.linears[1]
    plain = view.trace(ids, outputs=[linear]).outputs[linear.name]
    with view.shifted({linear.name: torch.ones_like(plain)}):
        assert view.writes_residual
        moved = view.trace(ids, outputs=[linear]).outputs[linear.name]
    assert torch.allclose(moved, plain + 1)


@pytest.mark.parametrize("name", ["skips_blocks", "keeps_states"])
def test_running_out_of_memory_says_nothing_of_a_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    view = EditableModel.of(tiny_model("llama"))

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(view.model, "forward", full)
        with pytest.raises(torch.OutOfMemoryError):
            getattr(view, name)
    assert getattr(view, name), "the next one to ask is told by trying"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_entries_of_the_stream_are_no_norm(family: str, dtype: torch.dtype) -> None:
    """Real models have a few that are a hundred times the others; in bf16 little of a shift is left beside them."""
    model = tiny_model(family, dtype=dtype)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 3] += 300.0 if family == "llama" else 3.0
    assert EditableModel.of(model).writes_residual == (family == "llama")
