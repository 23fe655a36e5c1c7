"""What the benchmarks share: the base model, the data, the fixed questions, and how results are written."""

from __future__ import annotations

import json
import os
import platform
import random
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


ROOT = Path(__file__).parent
RESULTS = ROOT / "results"
BASE = ROOT.parent / "build" / "demo" / "base"


def data_folder() -> Path:
    """The folder of benchmark files: $HF_EDIT_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("HF_EDIT_DATA") or ROOT.parent.parent / "shared" / "data")
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not there: set HF_EDIT_DATA to the folder of unke.json and the others")
    return folder


def unrelated_questions() -> list[str]:
    """Chat questions that have nothing to do with any edit; written for this benchmark."""
    return (ROOT / "unrelated_questions.txt").read_text(encoding="utf-8").splitlines()


def chosen(spec: str, size: int) -> list[int]:
    """`100:112`, `3,40,120` or a mix of both, as indices below `size`."""
    indices: list[int] = []
    for part in filter(None, spec.split(",")):
        first, _, last = part.partition(":")
        indices.extend(range(int(first), int(last)) if last else [int(first)])
    return [i for i in indices if i < size]


def environment() -> dict[str, Any]:
    """Versions and hardware, for the record."""
    return {
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "hf-edit")},
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def mean_interval(values: Sequence[float], seed: int = 0, draws: int = 2000) -> dict[str, float]:
    """Mean with a 95 % bootstrap interval over records."""
    if not values:
        return {}
    generator = random.Random(seed)
    means = sorted(sum(generator.choices(values, k=len(values))) / len(values) for _ in range(draws))
    low, high = means[int(0.025 * draws)], means[int(0.975 * draws) - 1]
    return {
        "mean": round(sum(values) / len(values), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "n": len(values),
    }


def write(name: str, result: dict[str, Any]) -> Path:
    """Write a result to benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
