"""No test here asks the Hub."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving an adapter asks the Hub for the base's config."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
