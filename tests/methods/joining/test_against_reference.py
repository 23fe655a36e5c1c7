"""The join against plain dense solves with edited weights in copies of the model, in float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from hf_edit.methods.joining.asked import Asked
from hf_edit.methods.joining.config import JoinSettings
from hf_edit.methods.joining.update import Join
from hf_edit.methods.training.texts import prepared
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.prompting import Encoded
from hf_edit.statistics.moments import SecondMoments
from tests.methods.preserving import Fixed
from tests.tiny import tiny_model


TAUGHT = [Encoded((5, 6, 7, 8, 9, 10, 11), 3), Encoded((12, 13), 1), Encoded((20, 21, 22, 23, 24), 4)]
EARLIER = Encoded((40, 41, 42, 43, 44, 45), 2)
LAMBDA, RIDGE, EARLIER_WEIGHT = 0.05, 1e-4, 0.5


def moments(linears: Sequence[EditableLinear]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    found = {}
    for linear in linears:
        X = torch.randn(3 * linear.d_in, linear.d_in, generator=generator, dtype=torch.float64)
        found[linear.name] = X.T @ X / len(X)
    return found


def values_of(linears: Sequence[EditableLinear], names: Sequence[str]) -> list[dict[str, Tensor]]:
    """Per text what it asks for; the last asks nothing of the second linear."""
    generator = torch.Generator().manual_seed(4)
    found = []
    for text in TAUGHT:
        n = len(text.ids) - 1
        found.append(
            {
                linear.name: 0.1 * torch.randn(n, linear.d_out, generator=generator, dtype=torch.float64)
                for linear in linears
                if linear.name in names
            }
        )
    found[-1].pop(names[1])
    return found


def run(model, ids: Sequence[int], linear, block: int, shifts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What enters a linear, what leaves it with its shift, and the stream that leaves its block, by plain hooks."""
    kept: dict[str, Tensor] = {}
    view = EditableModel.of(model)
    handles = []

    def adding(shift: Tensor):
        return lambda _, __, output: output + shift

    for name, shift in shifts.items():
        handles.append(model.get_submodule(name).register_forward_hook(adding(shift)))
    module = model.get_submodule(linear.name)
    handles.append(module.register_forward_hook(lambda _, args, output: kept.update(inside=args[0], out=output)))
    handles.append(
        view.blocks[block].register_forward_hook(
            lambda _, __, output: kept.update(stream=output[0] if isinstance(output, tuple) else output)
        )
    )
    try:
        with torch.no_grad():
            model(torch.tensor([list(ids[:-1])]))
    finally:
        for handle in handles:
            handle.remove()
    shape = (len(ids) - 1, -1)
    return kept["inside"].reshape(shape), kept["out"].reshape(shape), kept["stream"].reshape(shape)


def reference(base, linears, order: Sequence[str], C: Mapping[str, Tensor], values, in_stream: set[str]):
    """dW by name, dense: each linear in turn, with the changes before it written into the weights of a copy."""
    model = copy.deepcopy(base)
    linears = {linear.name: linear for linear in linears}
    found: dict[str, Tensor] = {}
    for name in order:
        linear = linears[name]
        ridged = C[name] + RIDGE * C[name].diagonal().mean() * torch.eye(linear.d_in, dtype=torch.float64)
        left = [torch.linalg.cholesky(ridged).T * LAMBDA**0.5]
        right = [torch.zeros(linear.d_in, linear.d_out, dtype=torch.float64)]
        texts = [(text, wanted, 1.0) for text, wanted in zip(TAUGHT, values, strict=True)]
        for text, wanted, weight in [*texts, (EARLIER, {}, EARLIER_WEIGHT)]:
            _, out, stream = run(base, text.ids, linear, linear.layer, wanted)
            keys, out_now, stream_now = run(model, text.ids, linear, linear.layer, {})
            missing = stream - stream_now if name in in_stream else out - out_now
            left.append(weight**0.5 * keys)
            right.append(weight**0.5 * missing)
        found[name] = torch.linalg.lstsq(torch.cat(left), torch.cat(right)).solution.T
        weight = model.get_submodule(name).weight
        with torch.no_grad():
            weight += found[name] if weight.shape == found[name].shape else found[name].T
    return found


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "gptj", "phi3"])
def test_linears_of_several_blocks(family: str) -> None:
    model = tiny_model(family, dtype=torch.float64)
    linears = [EditableModel.of(model).linears[block] for block in (0, 1, 3)]
    writes = {linear.name for linear in linears} if family != "gemma3_text" else set()  # a norm stands between
    check(model, linears, [linear.name for linear in linears], writes)


def test_linears_of_one_block_are_solved_as_the_model_runs_through_them() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    attention, mlp, later = (
        "model.layers.1.self_attn.o_proj",
        "model.layers.1.mlp.down_proj",
        "model.layers.2.mlp.down_proj",
    )
    linears = EditableModel.of(model).linears_named({mlp, attention, later})
    check(model, linears, [attention, mlp, later], {later})


def check(model, linears: Sequence[EditableLinear], order: Sequence[str], in_stream: set[str]) -> None:
    """The join of TAUGHT and the reference give the same updates."""
    view = EditableModel.of(model)
    C = moments(linears)
    values = values_of(linears, order)
    settings = JoinSettings(preservation=LAMBDA, ridge=RIDGE, earlier_weight=EARLIER_WEIGHT, rank=10**6, rounds=1)
    join = Join(view, linears, Fixed(SecondMoments({"text": C}, {"text": 100}, "drawn"), earlier=[EARLIER]), settings)
    first = linears[0].layer
    for text, wanted in zip(prepared(view, TAUGHT, first), values, strict=True):
        join.add(Asked(text, wanted))
    joined = join.solved()
    expected = reference(model, linears, order, C, values, in_stream)
    assert set(joined.deltas) == set(expected)
    for name, dW in expected.items():
        assert float((joined.deltas[name].dense() - dW).norm()) <= 1e-9 * max(1.0, float(dW.norm())), name
