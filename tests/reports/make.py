"""A bench.json of invented figures, as `hf_edit.bench` writes it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from hf_edit.bench.cells import FORMAT_VERSION


HOSTILE = "<script>alert('x')</script> & \u202egnp.exe"
METRICS = (
    ("reliability.exact", "free generation", True),
    ("reliability.contains", "free generation", True),
    ("paraphrase.contains", "free generation", True),
    ("strangers.same", "free generation", True),
    ("unrelated.kl", "fixed text", False),
    ("perplexity.text", "fixed text", False),
)
BASELINES = ("none", "in-context", "retrieval")


def bench_json(
    methods: Sequence[str] = ("none", "in-context", "emsedit", "memit"),
    data: Sequence[str] = ("zsre",),
    together: Sequence[int] = (1, 100),
    question: str = HOSTILE,
) -> dict[str, Any]:
    """As it is written, read back: plain JSON values."""
    draw = random.Random(0)
    cells = [
        _cell(draw, one, method, size, question)
        for one in data
        for method in methods
        for size in ((None,) if method in BASELINES else together)
    ]
    return {
        "format_version": FORMAT_VERSION,
        "settings": {"methods": list(methods), "note": HOSTILE},
        "base": {
            "id": "tiny/base",
            "revision": None,
            "model_type": "llama",
            "layers": 30,
            "hidden_size": 576,
            "parameters": 134_515_008,
        },
        "edits": {one: {"ids": ["e0"], "sha256": "0" * 64} for one in data},
        "cells": cells,
        "refused": [{"name": "zsre--unke--by-1--seed-0", "refused": f"No edits of {HOSTILE}."}],
    }


def _cell(draw: random.Random, data: str, method: str, size: int | None, question: str) -> dict[str, Any]:
    edited = method != "none"
    n = 100

    def figure(value: float, spread: float) -> dict[str, Any]:
        low, high = max(0.0, value - spread), value + spread
        return {"value": value, "low": low, "high": min(1.0, high) if value <= 1 else high, "n": n, "values": []}

    def metric(name: str, protocol: str, higher: bool) -> dict[str, Any]:
        drifts = name.startswith(("strangers", "unrelated"))
        scale = 20.0 if name == "perplexity.text" else 0.05 if name.endswith("kl") else 1.0
        after = scale * (1 + draw.random() / 10 if scale == 20.0 else 0.4 + 0.6 * draw.random())
        return {
            "name": name,
            "protocol": protocol,
            "compared": f"What {name} says.",
            "higher_is_better": higher,
            "statistic": "mean",
            "before": None
            if drifts
            else figure(scale * (1.0 if scale > 1 else 0.02 + 0.1 * draw.random()), 0.03 * scale),
            "after": figure(after, 0.06 * scale) if edited else None,
        }

    modules = [
        {
            "name": f"model.layers.{layer}.mlp.down_proj",
            "layer": layer,
            "rank": float(draw.choice((2, 32, 64))),
            "norm": draw.random(),
            "relative_norm": 0.001 + 0.02 * draw.random(),
        }
        for layer in draw.choice(([12], [6, 7, 8, 9], list(range(18, 30))))
    ]
    baseline = method in BASELINES
    return {
        "name": f"{data}--{method}" + ("" if baseline else f"--by-{size}--seed-0"),
        "data": data,
        "method": method,
        "together": size,
        "seed": 0,
        "metrics": [one for one in (metric(*row) for row in METRICS) if one["before"] or one["after"]],
        "packs": None
        if baseline
        else {"count": 1, "bytes": 2e5 * (1 + draw.random()), "bytes_of_values": 1e5, "modules": modules},
        "retention": [{"edits": 10 * (i + 1), "value": min(1.0, 0.5 + draw.random() / 2)} for i in range(10)]
        if size == 100
        else [],
        "examples": [
            {
                "kind": "prompt",
                "prompt": [{"role": "user", "content": question}],
                "accepted": [HOSTILE],
                "before": HOSTILE,
                "after": HOSTILE if edited else None,
            }
        ],
        "protocol": {"format": "chat", "edits": {"count": n, "sha256": "0" * 64}},
        "environment": {
            "versions": {"torch": "2.0"},
            "dtype": "float32",
            "device": "cpu",
            "seed": 0,
            "hardware": {"python": "3.11", "processor": "a processor", "threads": 1, "processes": 1},
        },
        "seconds": {"evaluation": 9.5}
        if baseline
        else {"per_edit": 40 * draw.random(), "statistics": 0.0, "evaluation": 9.5},
        "peak_memory": {"process": int(1e9 * (1 + draw.random()))},
    }
