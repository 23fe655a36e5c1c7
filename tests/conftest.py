"""Fixtures for all tests."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from hf_edit.errors import ConfigError


EMBEDDED = Path(__file__).parents[1] / "build" / "demo" / "base"
"""Where `make demo` puts the embedded model, so that it is converted once for all."""


# The same draws every time, so that a change is judged by what it changes; `--hypothesis-profile=default` draws anew.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, in whatever order tests run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def fast_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest, fast_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast tests leave the user's cache alone; slow ones share it, as collecting for a real model takes minutes.

    None looks for statistics where the user does.
    """
    monkeypatch.delenv("HF_EDIT_STATISTICS", raising=False)
    if "slow" not in request.keywords:
        monkeypatch.setenv("HF_EDIT_CACHE", str(fast_cache))


@pytest.fixture(scope="session")
def embedded_base() -> Path:
    """Directory of SmolLM2-135M-Instruct; for tests marked slow."""
    from hf_edit.models.loading import export_embedded

    try:
        return export_embedded(EMBEDDED)
    except ConfigError as error:
        pytest.skip(str(error))
