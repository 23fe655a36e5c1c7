"""Progress on stderr: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import pytest

from hf_edit.cli.progress import Bars


def work() -> None:
    with Bars() as bars:
        bars.step()  # before any stage: nothing to advance
        bars.stage("targets", 3)
        bars.step(loss=1.5)
        bars.step(2, loss=0.01234)
        bars.stage("solve", 1)
        bars.step()


def test_one_line_per_stage_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    work()
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert out == ""
    assert first.startswith("targets 3/3 in ") and first.endswith("loss 0.0123")
    assert second.startswith("solve 1/1 in ")


def test_bars_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    work()
    out, err = capsys.readouterr()
    assert out == ""
    assert "targets" in err and "━" in err and "3/3" in err


def test_an_interrupted_stage_is_told_and_the_error_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), Bars() as bars:
        bars.stage("targets", 3)
        bars.step()
        raise KeyboardInterrupt
    assert capsys.readouterr().err.startswith("targets 1/3")
