"""What the benchmarks share: the base model, the data, the fixed questions, and how results are written."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hf_edit.bench.costs import hardware
from hf_edit.evaluation.figures import figure
from hf_edit.prompting import PromptFormat


ROOT = Path(__file__).parent
RESULTS = ROOT / "results"
BASE = ROOT.parent / "build" / "demo" / "base"
M_MMAP_THRESHOLD = -3  # of glibc's mallopt


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


def shown(row: Mapping[str, Any]) -> str:
    """A row of figures on one line: of intervals their means."""
    return " ".join(f"{key}={_short(value)}" for key, value in row.items())


def _short(value: Any) -> str:
    if isinstance(value, dict) and "mean" in value:
        value = value["mean"]
    if isinstance(value, list):
        return ",".join(map(_short, value)) or "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def perplexity_ids(prompts: PromptFormat, count: int) -> Sequence[int]:
    """The first `count` tokens of WikiText's test file, whose perplexity is measured."""
    text = (data_folder() / "wikitext2_test.txt").read_text(encoding="utf-8")
    return prompts.text_ids(text[: 8 * count])[:count]


def give_back_freed() -> None:
    """Let glibc hand freed blocks back at once, so that what the process holds is what is in use."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 18)


def trim() -> None:
    """Collect what nobody holds, and hand back what is still kept of it."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def seconds(run: Callable[[], Any]) -> float:
    """How long it takes, with everything on the accelerator done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def environment() -> dict[str, Any]:
    """Versions and hardware, for the record."""
    return {
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "hf-edit")},
        **hardware(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def mean_interval(values: Sequence[float], seed: int = 0) -> dict[str, float | None]:
    """Mean with a 95 % interval over records, the one that `hf-edit evaluate` gives; none of a single record."""
    found = figure(values, seed=seed)
    if found is None:
        return {}
    rounded = {
        name: None if value is None else round(value, 4)
        for name, value in (("mean", found.value), ("low", found.low), ("high", found.high))
    }
    return {**rounded, "n": found.n}


def write(name: str, result: dict[str, Any]) -> Path:
    """Write a result to benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
