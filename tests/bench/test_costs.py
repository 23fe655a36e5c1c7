from __future__ import annotations

import time

import pytest
import torch

from hf_edit.bench.costs import STATISTICS, Clock, watched
from hf_edit.progress import Silent
from tests.editing import Listener


def test_a_clock_takes_the_time_of_stages_and_hands_on_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((0.0, 1.0, 3.0, 6.0, 10.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    listener = Listener()
    clock = Clock(listener)
    clock.stage("statistics: text", 5)
    clock.stage("statistics: moments", 5)
    clock.stage("targets", 2)
    assert clock.stop() == {"other": 1.0, STATISTICS: 5.0, "targets": 4.0}
    assert [name for name, _ in listener.stages] == ["statistics: text", "statistics: moments", "targets"]


def test_without_stages_all_time_is_other() -> None:
    assert list(Clock(Silent()).stop()) == ["other"]


def test_the_peak_of_memory_counts_what_was_given_back() -> None:
    with watched(torch.device("cpu")) as before:
        pass
    with watched(torch.device("cpu")) as during:
        held = torch.ones(64 << 20, dtype=torch.uint8)
        del held
    assert during.found["process"] - before.found["process"] > 48 << 20
