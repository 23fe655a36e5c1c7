"""Continuations against a plain token-by-token loop, one row at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_edit.models import generation
from hf_edit.models.generation import continuations, drafted, greedy, sampling
from tests.tiny import FAMILIES, VOCAB, tiny_model


ROWS = [[7, 8], [300], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55], [9, 200, 10], [90, 91]]


BEGIN = [5, 60, 7, 80, 9, 10, 110, 12, 13, 140]
UNDER_ONE_PROMPT = [
    [*BEGIN, *row] for row in ([20], [30, 31, 32], [20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31], [])
]


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


def forwards(model: torch.nn.Module, run: Callable[[], object]) -> list[tuple[int, ...]]:
    """The shapes of the ids that are run."""
    shapes: list[tuple[int, ...]] = []
    handle = model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    run()
    handle.remove()
    return shapes


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
    written: list[list[int]] = []
    shapes = forwards(model, lambda: written.extend(continuations(model, UNDER_ONE_PROMPT, (), 9)))
    assert written == [one_by_one(model, row, set(), 9) for row in UNDER_ONE_PROMPT]
    # the last token of the shortest row is run with all of them
    assert shapes[:2] == [(1, len(BEGIN) - 1), (4, len(UNDER_ONE_PROMPT[2]) - len(BEGIN) + 1)]


DRAFTS: dict[str, Callable[[list[int]], list[int]]] = {
    "right": lambda said: [*said, 6],
    "right, without its end": lambda said: said,
    "wrong in the middle": lambda said: [*said[:9], 499, *said[10:], 6],
    "wrong twice": lambda said: [*said[:8], 499, *said[9:12], 499, *said[13:]],
    "wrong at once": lambda said: [499, *said[1:], 6],
    "words too many": lambda said: [*said[:7], 498, 499, *said[7:], 6],
    "words too few": lambda said: [*said[:7], *said[8:], 6],
    "ends too early": lambda said: [*said[: len(said) // 2], 6],
    "never ends": lambda said: said + [499] * 40,
    "its end alone": lambda said: [6],
    "empty": lambda said: [],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_change_nothing(family: str) -> None:
    """Also mixed in one batch, and where answers end before the limit, at it, or at once."""
    model = tiny_model(family, dtype=torch.float32 if family == "gemma2" else torch.float64)
    endless = continuations(model, ROWS, (), 20)
    stop_ids = {endless[0][14], endless[3][0], 6}
    said = continuations(model, ROWS, stop_ids, 20)
    assert said[3] == [] and max(map(len, said)) == 20
    for change in DRAFTS.values():
        assert drafted(model, ROWS, [change(ids) for ids in endless], stop_ids, 20) == said
    mixed = [change(ids) for change, ids in zip(DRAFTS.values(), said, strict=False)]
    assert drafted(model, ROWS, mixed, stop_ids, 20) == said
    for most in (0, 1, 5):
        assert drafted(model, ROWS, endless, stop_ids, most) == continuations(model, ROWS, stop_ids, most)
    assert drafted(model, ROWS[:1], endless[:1], stop_ids, 20) == said[:1]


def test_what_a_draft_costs() -> None:
    model, rows = tiny_model(dtype=torch.float64), [ROWS[4], ROWS[0]]
    stop_ids = {continuations(model, rows, (), 20)[1][10]}
    said = continuations(model, rows, stop_ids, 20)
    assert [len(ids) for ids in said] == [20, 10]

    def cost(*drafts: list[int]) -> list[tuple[int, ...]]:
        return forwards(model, lambda: drafted(model, rows[: len(drafts)], drafts, stop_ids, 20))

    assert cost(*said) == [(2, 21)]  # the last of twenty tokens is read off behind the one before
    assert cost(DRAFTS["never ends"](said[0])) == [(1, 21)]
    assert cost([*said[0][:8], 499, *said[0][9:]]) == [(1, 21)] * 2  # another word
    assert cost([*said[0][:7], 498, 499, *said[0][7:]]) == [(1, 21)] * 2  # two words too many
    assert cost(DRAFTS["wrong at once"](said[0])) == [(1, 21), (1, 3)] + [(1, 1)] * 18
    assert cost([], []) == forwards(model, lambda: continuations(model, rows, stop_ids, 20))


def test_long_drafts_are_run_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(dtype=torch.float64)
    said = continuations(model, ROWS, (), 20)
    monkeypatch.setattr(generation, "TOKENS_AT_ONCE", 45)
    shapes = forwards(model, lambda: drafted(model, ROWS, said, (), 20))
    assert shapes == [(2, 21), (2, 22), (1, 35)]


def test_near_ties_are_left_to_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    said = continuations(model, ROWS, (), 20)
    monkeypatch.setattr(generation, "MARGINS", {torch.float32: float("inf")})
    plain = forwards(model, lambda: continuations(model, ROWS, (), 20))
    assert drafted(model, ROWS, said, (), 20) == said
    shapes = forwards(model, lambda: drafted(model, ROWS, said, (), 20))
    assert shapes[:2] == [(5, 35), plain[0]] and len(shapes) == 2 * generation.TRIES + len(plain) - generation.TRIES


def test_no_row_is_written_beyond_its_limit() -> None:
    """GPT-2 knows 256 places: the first row, mostly foretold, ends while the other is written."""
    model = tiny_model("gpt2", dtype=torch.float64)
    rows = [[(7 * i + k) % 500 for i in range(246)] for k in range(2)]
    said = continuations(model, rows, (), 10)
    assert drafted(model, rows, [[*said[0][:6], 499], []], (), 10) == said


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
