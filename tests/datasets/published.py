"""Where the published files lie that a few tests read: they are no part of the project."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


def published(name: str) -> Path:
    """The file of that name in the folder HF_EDIT_DATA or beside the checkout; skips the test where there is none."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    path = Path(os.environ.get("HF_EDIT_DATA", beside)) / name
    if not path.exists():
        pytest.skip(f"{name} is not there: set HF_EDIT_DATA to the folder that holds it")
    return path


def written(folder: Path, *records: Any) -> Path:
    """A file of those records in the published form, a JSON list."""
    path = folder / "records.json"
    path.write_text(json.dumps(list(records)), encoding="utf-8")
    return path
