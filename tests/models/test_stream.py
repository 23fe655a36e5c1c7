"""Layouts of the residual stream: found, laid side by side, and undone."""

from __future__ import annotations

import pytest
import torch

from hf_edit.errors import UnsupportedModelError
from hf_edit.models.stream import Layout


@pytest.mark.parametrize("shape", [(2, 3, 8), (4, 2, 3, 8), (2, 2, 3, 8), (2, 3, 4, 8), (2, 3, 2, 3)])
def test_there_and_back(shape: tuple[int, ...]) -> None:
    stream = torch.randn(*shape)
    layout = Layout.seen("Model", [shape, shape], (2, 3))
    flat = layout.side_by_side(stream)
    assert flat.shape == (2, 3, stream.numel() // 6)
    assert torch.equal(layout.native(flat), stream)


def test_a_token_keeps_its_own_states() -> None:
    stream = torch.randn(4, 2, 3, 8)
    flat = Layout.seen("Model", [(4, 2, 3, 8)], (2, 3)).side_by_side(stream)
    assert torch.equal(flat[1, 2], stream[:, 1, 2].reshape(-1))


@pytest.mark.parametrize("shapes", [[(2, 9, 8)], [(6, 8)], [(2, 3, 8), (2, 3, 16)], []])
def test_other_forms_are_refused(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(UnsupportedModelError, match="The blocks of Model return .* for 2 rows of 3 tokens"):
        Layout.seen("Model", shapes, (2, 3))
