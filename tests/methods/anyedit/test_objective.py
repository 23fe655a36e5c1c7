from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_edit.methods.anyedit.chunks import Chunk
from hf_edit.methods.anyedit.objective import nested_lengths, token_weights


CHUNKS = [Chunk(0, 4), Chunk(3, 7), Chunk(6, 8)]


@pytest.mark.parametrize(
    ("index", "objective", "nested_chunks", "lengths"),
    [
        (0, "chunk", None, [4]),
        (2, "chunk", None, [2]),
        (0, "nested", None, [4, 7, 8]),
        (1, "nested", None, [4, 5]),
        (0, "nested", 2, [4, 7]),
        (0, "nested", 9, [4, 7, 8]),
        (2, "nested", 2, [2]),
    ],
)
def test_nested_texts_begin_with_the_chunk(
    index: int, objective: str, nested_chunks: int | None, lengths: list[int]
) -> None:
    assert nested_lengths(CHUNKS, index, objective, nested_chunks) == lengths


def directions(*angles: float) -> Tensor:
    """(n, 2): the gradient of each token's loss."""
    turned = torch.tensor(angles, dtype=torch.float64).deg2rad()
    return torch.stack([turned.cos(), turned.sin()], dim=1)


def weights(gradients: Tensor, lengths: list[int]) -> Tensor:
    start = torch.zeros(1, 2, dtype=torch.float64)
    return token_weights(lambda deltas: deltas @ gradients.T, start, [lengths], lengths[-1], start.new_tensor([0.1]))[
        0
    ]


def test_one_text_is_averaged() -> None:
    assert weights(directions(0, 90, 45), [3]).tolist() == [1 / 3] * 3


def test_texts_that_agree_count_alike() -> None:
    """The chunk's own token is in both texts, the other in one."""
    torch.testing.assert_close(weights(directions(0, 0), [1, 2]), torch.tensor([2.0, 1.0], dtype=torch.float64) / 3)


def test_a_text_that_the_chunk_does_not_help_counts_more() -> None:
    """The second token pulls so hard the other way that the texts' gradients are opposite: c = 1 and 2 - (-1)."""
    opposite = torch.cat([directions(0), 5 * directions(180)])
    torch.testing.assert_close(weights(opposite, [1, 2]), torch.tensor([4.0, 3.0], dtype=torch.float64) / 7)


def test_gradients_are_compared_along_the_way() -> None:
    """The second token's gradient turns once delta has moved, here after the first of three steps."""

    def losses(deltas: Tensor) -> Tensor:
        moved = (deltas.detach().norm() > 0).double()
        return torch.stack([deltas[:, 0], 5 * (2 * moved - 1) * deltas[:, 0]], dim=1)

    start = torch.zeros(1, 2, dtype=torch.float64)
    (found,) = token_weights(losses, start, [[1, 2]], 2, start.new_tensor([0.1]))
    c = 2 - (-1 + 1 + 1) / 3
    torch.testing.assert_close(found, torch.tensor([1 + c, c], dtype=torch.float64) / (1 + 2 * c))


def test_chunks_do_not_see_each_other() -> None:
    """One of three texts and one of a single text, side by side."""
    gradients = torch.stack([directions(0, 40, 100, 170), directions(20, 70, 0, 0)])
    start, rates = torch.zeros(2, 2, dtype=torch.float64), torch.tensor([0.1, 0.2], dtype=torch.float64)
    both = token_weights(lambda d: torch.einsum("rnk,rk->rn", gradients, d), start, [[1, 2, 4], [2]], 4, rates)
    torch.testing.assert_close(both[0], weights(gradients[0], [1, 2, 4]))
    assert both[1].tolist() == pytest.approx([0.5, 0.5, 0, 0])
