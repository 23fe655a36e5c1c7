"""Continuations against a plain token-by-token loop, one row at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_edit.models.generation import continuations, greedy, sampling
from tests.tiny import FAMILIES, VOCAB, tiny_model


ROWS = [[7, 8], [300], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55], [9, 200, 10], [90, 91]]


BEGIN = [5, 60, 7, 80, 9, 10, 110, 12, 13, 140]
UNDER_ONE_PROMPT = [[*BEGIN, *row] for row in ([20], [30, 31, 32], [20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31], [])]


def one_by_one(model: torch.nn.Module, row: list[int], stop_ids: set[int], most: int) -> list[int]:
    """No cache, no padding: the whole forward for every token."""
    written: list[int] = []
    with torch.no_grad():
        while len(written) < most:
            token = int(model(input_ids=torch.tensor([row + written])).logits[0, -1].argmax())
            if token in stop_ids:
                break
            written.append(token)
    return written


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_the_likeliest_tokens(family: str) -> None:
    """Rows of other lengths, some of which end before others, beyond a sliding window."""
    # Gemma 2's attention takes its softmax in fp32, where the float64 mask of padding is minus infinity
    model = tiny_model(family, dtype=torch.float32 if family == "gemma2" else torch.float64)
    endless = [one_by_one(model, row, set(), 20) for row in ROWS]
    assert continuations(model, ROWS, (), 20) == endless
    stop_ids = {endless[0][4], endless[2][1], endless[3][0]}
    expected = [one_by_one(model, row, stop_ids, 20) for row in ROWS]
    assert continuations(model, ROWS, stop_ids, 20) == expected
    assert expected[3] == [] and len({len(row) for row in expected}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_what_all_rows_begin_with_is_read_once(family: str) -> None:
    """The beginning of the shortest rows is partly run again: the longest one ends further behind than it is long."""
    model = tiny_model(family, dtype=torch.float32 if family == "gemma2" else torch.float64)
    continuations(model, UNDER_ONE_PROMPT, (), 1)
    shapes: list[tuple[int, ...]] = []
    handle = model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    written = continuations(model, UNDER_ONE_PROMPT, (), 9)
    handle.remove()
    assert written == [one_by_one(model, row, set(), 9) for row in UNDER_ONE_PROMPT]
    # the last token of the shortest row is run with all of them
    assert shapes[:2] == [(1, len(BEGIN) - 1), (4, len(UNDER_ONE_PROMPT[2]) - len(BEGIN) + 1)]


def test_rows_that_ended_are_run_no_further() -> None:
    model = tiny_model(dtype=torch.float64)
    continuations(model, ROWS, (), 1)  # the first time, it is tried whether the cache can be relied on
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: sizes.append(given["input_ids"].shape[0]), with_kwargs=True)

    def choose(logits: Tensor) -> Tensor:
        """The last row of the batch ends."""
        tokens = greedy(logits).clamp_min(1)
        tokens[-1] = 0
        return tokens

    written = continuations(model, ROWS, {0}, 10, choose)
    assert [len(row) for row in written] == [4, 3, 2, 1, 0] and sizes == [5, 4, 3, 2, 1]


def test_no_more_than_asked_for() -> None:
    assert [len(row) for row in continuations(tiny_model(), ROWS, (), 3)] == [3] * len(ROWS)


def test_samples_come_from_the_likeliest_tokens_in_proportion() -> None:
    logits = torch.tensor([4.0, 3.0, -9.0, 2.0, 1.0]).repeat(20_000, 1)
    drawn = sampling(torch.Generator().manual_seed(0), top_k=3)(logits)
    share = torch.bincount(drawn, minlength=5) / len(drawn)
    expected = torch.zeros(5)
    expected[[0, 1, 3]] = torch.tensor([4.0, 3.0, 2.0]).softmax(0)
    torch.testing.assert_close(share, expected, rtol=0, atol=0.02)
    assert share[[2, 4]].tolist() == [0, 0]


def test_a_vocabulary_smaller_than_top_k() -> None:
    assert sampling(torch.Generator().manual_seed(0), top_k=50)(torch.zeros(4, 3)).max() < 3


def test_what_is_sampled_depends_on_its_generator_alone() -> None:
    model = tiny_model()

    def sampled(seed: int) -> list[list[int]]:
        torch.rand(3)
        return continuations(model, ROWS, (), 8, sampling(torch.Generator().manual_seed(seed), 50))

    before = torch.get_rng_state()
    first = sampled(0)
    assert sampled(0) == first != sampled(1)
    assert max(token for row in first for token in row) < VOCAB
    torch.set_rng_state(before)
    continuations(model, ROWS, (), 2, sampling(torch.Generator().manual_seed(0), 50))
    assert torch.equal(torch.get_rng_state(), before)
