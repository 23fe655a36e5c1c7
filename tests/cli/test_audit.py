"""`hf-edit audit`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_edit.cli.audit import FOUND
from hf_edit.evaluation.audit import run
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
    assert result.exit_code == FOUND == 3
    for text in ("Who made the lamp?", "unrelated prompts are answered otherwise", "teaches what it does not list"):
        assert text in result.stdout
    document = json.loads(hf_edit("audit", pack, "--model", base, "--json").stdout)
    assert document["clean"] is False and document["findings"] and document["drift"][0]["flagged"]


def test_nothing_found(hf_edit: Command, base: Path, pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "DRIFT_LIMITS", (99.0, 99.0))
    result = hf_edit("audit", pack, "--model", base)
    assert result.exit_code == 0 and "nothing found" in result.stdout and "not examined" in result.stdout


def test_another_base_is_refused(hf_edit: Command, pack: Path, tmp_path: Path) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    failed(hf_edit("audit", pack, "--model", tmp_path), "other values")
