"""`hf-edit audit`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_edit.evaluation.audit import report, run
from hf_edit.statistics.config import StatisticsConfig
from tests.cli.conftest import Command, failed
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few prompts and few statistics; what they tell is tested with the audit itself."""
    monkeypatch.setattr(run, "unrelated_prompts", lambda: ["What do bees make?", "Name three planets."])
    few = StatisticsConfig(tokens=64, conversations=0, length=16)
    monkeypatch.setattr("hf_edit.evaluation.audit.moments.StatisticsConfig", lambda: few)


def test_what_is_found_ends_in_a_code_of_its_own(
    hf_edit: Command, base: Path, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "DRIFT_LIMITS", (0.0, 0.0))
    result = hf_edit("audit", pack, "--model", base)
    assert result.exit_code == 3
    for text in (
        "Who made the lamp?",
        "unrelated prompts are answered otherwise",
        "does not do what it lists, or not only that",
    ):
        assert text in result.stdout
    document = json.loads(hf_edit("audit", pack, "--model", base, "--json").stdout)
    assert document["clean"] is False and document["findings"] and document["drift"][0]["flagged"]


def test_what_could_not_be_examined_is_not_passed_off_as_clean(
    hf_edit: Command, base: Path, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "DRIFT_LIMITS", (99.0, 99.0))
    monkeypatch.setattr(report, "LIKELY", 99.0)
    result = hf_edit("audit", pack, "--model", base)
    assert result.exit_code == 4 and "not examined" in result.stdout
    assert "nothing found, but not everything could be examined" in result.stdout
    monkeypatch.setattr(run, "examined", lambda *_: {})
    result = hf_edit("audit", pack, "--model", base)
    assert result.exit_code == 0 and "1 of 1 hold, 0 word for word" in result.stdout


def test_listed_edits_that_do_not_hold_are_found(
    hf_edit: Command, base: Path, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "DRIFT_LIMITS", (99.0, 99.0))
    result = hf_edit("audit", pack, "--model", base)
    assert result.exit_code == 3 and "0 of the 1 listed edits hold" in result.stdout


def test_another_base_is_refused(hf_edit: Command, pack: Path, tmp_path: Path) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    failed(hf_edit("audit", pack, "--model", tmp_path), "other values")
