"""What is counted, how parts shrink until they fit, and what is said where nothing fits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_edit.errors import ConfigError, MemoryBudgetError
from hf_edit.models.memory import UNITS, BeyondBudget, Count, Memory, parse_bytes, ran_out, shown_bytes


CPU = torch.device("cpu")
ALLOCATORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
    ),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
    MemoryError(),
]


@given(st.integers(1, 10**6), st.sampled_from(sorted(UNITS)), st.booleans(), st.sampled_from(["", " "]))
def test_sizes_are_read_in_every_unit(number: int, unit: str, lower: bool, space: str) -> None:
    assert parse_bytes(f"{number}{space}{unit.lower() if lower else unit}") == number * UNITS[unit]


@given(st.integers(1, 10**15))
def test_a_size_that_is_shown_suffices_where_it_is_given(size: int) -> None:
    assert parse_bytes(size) == size
    assert size <= parse_bytes(shown_bytes(size)) <= 1.1 * size


def test_sizes_may_have_a_fraction() -> None:
    assert parse_bytes("1.5 GiB") == 3 << 29
    assert parse_bytes(".5k") == 500


@pytest.mark.parametrize("size", ["", "GB", "2 GX", "-1MB", "1e9", "0", "0.2B", "two", -5, 0, True, "1 2MB", "nan"])
def test_what_is_no_size_is_refused(size: int | str) -> None:
    with pytest.raises(ConfigError) as told:
        parse_bytes(size)
    assert repr(size) in told.value.message


def test_tensors_count_as_long_as_they_are_there() -> None:
    before = torch.ones(1000)
    with Count(CPU) as count:
        a = torch.ones(100)  # 400 bytes
        assert count.live == 400
        views = [before[:5], a[:10], a.view(10, 10), before.add_(1)]
        assert count.live == 400
        b = a + 1
        assert count.live == 800
        del a
        assert count.live == 800  # a view holds it
        del views
        assert count.live == 400
        del b
    assert (count.live, count.peak) == (0, 800)


def test_a_backward_pass_counts_too() -> None:
    x = torch.ones(1000, requires_grad=True)
    with Count(CPU) as count:
        y = x.exp()
        (y * y).sum().backward()
    assert count.peak >= 3 * 4000


def test_tensors_elsewhere_do_not_count() -> None:
    with Count(CPU) as count:
        torch.ones(100, device="meta")
    assert count.peak == 0


def test_beyond_the_limit_nothing_is_made() -> None:
    with Count(CPU, limit=1000) as count, pytest.raises(BeyondBudget) as told:
        held = [torch.ones(100) for _ in range(3)]
        del held
    assert told.value.args == (1200,)
    assert count.peak == 800


def test_beyond_the_limit_a_backward_pass_ends() -> None:
    x = torch.ones(100, requires_grad=True)
    with Count(CPU, limit=1000), pytest.raises(BeyondBudget):
        (x.exp() * x.exp()).exp().sum().backward()


@pytest.mark.parametrize("error", ALLOCATORS, ids=str)
def test_allocators_are_understood(error: Exception) -> None:
    assert ran_out(error)


def test_other_errors_are_no_lack_of_memory() -> None:
    for error in (RuntimeError("shapes do not match"), ValueError("out of memory"), KeyError(1)):
        assert not ran_out(error)


class Device:
    """Work that runs out beyond so many tokens, padding included."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.done: list[list[int]] = []
        self.failed = 0

    def __call__(self, part: Sequence[int]) -> list[int]:
        if len(part) * max(part) > self.tokens:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.done.append(list(part))
        return list(part)


@given(st.lists(st.integers(1, 20), max_size=12), st.integers(1, 60), st.none() | st.integers(1, 5))
def test_every_item_runs_once_in_order_or_one_is_too_large(
    lengths: list[int], capacity: int, most: int | None
) -> None:
    device, memory = Device(capacity), Memory(CPU)
    try:
        found = list(memory.in_parts("work", lengths, device, int, most))
    except MemoryBudgetError as error:
        assert max(lengths) > capacity
        assert f"{next(n for n in lengths if n > capacity)} tokens" in error.message
    else:
        assert [one for part in found for one in part] == lengths
        assert all(len(part) <= (most or 12) for part in found)
        assert max(lengths, default=1) <= capacity


def test_a_kind_that_ran_out_stays_small() -> None:
    device, memory = Device(8), Memory(CPU)
    list(memory.in_parts("work", [2] * 8, device, int))
    assert (device.done, device.failed) == ([[2] * 4] * 2, 1)
    list(memory.in_parts("work", [2] * 4 + [4] * 4, device, int))
    assert device.done[2:] == [[2] * 4, [4] * 2, [4] * 2]
    assert device.failed == 1
    list(memory.in_parts("other", [2] * 8, device, int))
    assert device.failed == 2


def test_what_fits_is_not_cut() -> None:
    device = Device(1000)
    list(Memory(CPU).in_parts("work", [3, 1, 2], device, int))
    assert device.done == [[3, 1, 2]]


def test_other_errors_come_through() -> None:
    def broken(part: Sequence[int]) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(Memory(CPU).in_parts("work", [1, 2], broken, int))


def test_one_text_that_does_not_fit_is_recomputed_and_only_such() -> None:
    memory, recomputed = Memory(CPU), []

    def work(part: Sequence[int]) -> None:
        if max(part) > 5 and not memory.recomputing:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        recomputed.append((list(part), memory.recomputing))

    list(memory.in_parts("work", [6, 3, 7], work, int, most=1, backward=True))
    assert recomputed == [([6], True), ([3], False), ([7], True)]
    with pytest.raises(MemoryBudgetError, match="One text of 6 tokens does not fit into the memory of cpu"):
        list(memory.in_parts("without", [6], work, int))
    assert not memory.recomputing


def test_a_budget_is_kept_by_smaller_parts() -> None:
    """Each item needs 4,000 bytes while it runs, and leaves 400."""
    memory = Memory(CPU, budget=10_000)
    sizes = []

    def work(part: Sequence[int]) -> torch.Tensor:
        made = torch.ones(len(part), 1000)
        sizes.append(len(part))
        return made[:, :100].clone()

    with memory.watched():
        kept = list(memory.in_parts("work", [1] * 4, work, int))
    assert sizes == [2, 2]
    assert len(torch.cat(kept)) == 4
    assert memory.peak is not None and 4_400 <= memory.peak <= 10_000


def test_a_budget_that_is_too_small_is_told_with_what_it_takes() -> None:
    memory = Memory(CPU, budget=20_000)
    with pytest.raises(MemoryBudgetError) as told, memory.watched():
        list(memory.in_parts("work", [7], lambda part: torch.ones(10_000), int))
    assert told.value.message == (
        "One text of 7 tokens needs 40KB or more beside the model, and the memory budget is 20KB."
    )
    assert told.value.remedy.startswith("Give a budget above 40KB, or none;")


def test_a_budget_that_cannot_be_kept_elsewhere_is_told_too() -> None:
    with (
        pytest.raises(MemoryBudgetError, match="^What the method holds needs 40KB or more"),
        Memory(CPU, 20_000).watched(),
    ):
        torch.ones(10_000)


def test_without_a_budget_the_peak_is_that_of_the_process() -> None:
    memory = Memory(CPU)
    with memory.watched():
        held = torch.ones(64 << 20, dtype=torch.uint8)
        del held
    assert memory.peak is not None and memory.peak > 48 << 20


def test_states_are_kept_while_they_are_a_small_share_of_what_is_left() -> None:
    memory = Memory(CPU, 10_000)
    with memory.watched():
        assert memory.keeps(2_500) and not memory.keeps(2_501)
        held = torch.ones(1_000)
        assert memory.keeps(1_500) and not memory.keeps(1_501)
        del held
    assert Memory(CPU).keeps(1000)
