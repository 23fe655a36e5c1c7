"""Questions that have nothing to do with any edit: one list for all that asks them."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files


@cache
def unrelated_prompts() -> tuple[str, ...]:
    """The fixed list."""
    text = (files("hf_edit.evaluation") / "unrelated.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line)["prompt"] for line in text.splitlines())
