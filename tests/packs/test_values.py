from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hf_edit.errors import PackError
from hf_edit.methods.base import EditSource, KeyValues
from hf_edit.packs.values import check_source, read_source, source_tensors
from tests.packs.make import same_source


SHAPES = {"a.b": (3, 5), "c": (2, 4)}


def source() -> EditSource:
    return [
        {"a.b": KeyValues(torch.tensor([4, 9]), torch.randn(2, 3))},
        {},
        {"c": KeyValues(torch.tensor([], dtype=torch.int64), torch.randn(0, 2))},
    ]


def test_a_source_is_read_back() -> None:
    given = source()
    tensors = source_tensors(given)
    assert sorted(tensors) == ["0.a.b.positions", "0.a.b.values", "2.c.positions", "2.c.values"]
    assert same_source(read_source(tensors, 3), given)
    check_source(given, SHAPES, 3)


@pytest.mark.parametrize(
    "name", ["3.c.values", "-1.c.values", "00.c.values", "x", "0.c.other", "0..values", "1.c.values"]
)
def test_tensors_of_no_edit_are_refused(name: str) -> None:
    with pytest.raises(PackError, match="belongs to none of 3 edits"):
        read_source({**source_tensors(source()), name: torch.zeros(1)}, 3)


def asked(positions: torch.Tensor, values: torch.Tensor, module: str = "a.b") -> EditSource:
    return [{module: KeyValues(positions, values)}]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [], "of 0 edits, the pack of 1"),
        (lambda: asked(torch.tensor([1]), torch.zeros(1, 3), "z"), "does not change"),
        (lambda: asked(torch.tensor([-1]), torch.zeros(1, 3)), "positions"),
        (lambda: asked(torch.tensor([1.0]), torch.zeros(1, 3)), "positions"),
        (lambda: asked(torch.tensor([[1]]), torch.zeros(1, 3)), "positions"),
        (lambda: asked(torch.tensor([1]), torch.zeros(1, 4)), r"shape \(1, 4\), not \(1, 3\)"),
        (lambda: asked(torch.tensor([1, 2]), torch.zeros(1, 3)), r"shape \(1, 3\), not \(2, 3\)"),
        (lambda: asked(torch.tensor([1]), torch.full((1, 3), torch.inf)), "not finite"),
        (lambda: asked(torch.tensor([1]), torch.zeros(1, 3).to(torch.float8_e4m3fn)), "float8_e4m3fn values"),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], EditSource], message: str) -> None:
    with pytest.raises(PackError, match=message):
        check_source(make(), SHAPES, 1)
