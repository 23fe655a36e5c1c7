"""A small bench that tests run, also in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from hf_edit.bench.config import BenchConfig
from hf_edit.bench.run import run_bench
from hf_edit.progress import Progress
from tests.tiny import CORPUS, VOCAB, tiny_model, tiny_tokenizer


NAMES = ("play", "capital", "fuji", "river")
STATISTICS = {"tokens": 240, "conversations": 2, "answer_tokens": 4, "length": 12, "batch": 10}
CONFIG: dict[str, Any] = {
    "methods": [
        "none",
        "in-context",
        {
            "method": "finetune",
            "settings": {"rank": 2, "conversations": 2, "training": {"max_steps": 2}, "statistics": STATISTICS},
        },
        {"method": "emsedit", "settings": {"steps": 1, "statistics": STATISTICS}},
        {"method": "finetune", "label": "too-deep", "settings": {"layers": [99]}},
    ],
    "data": [{"file": "edits.jsonl", "together": [2, 4], "format": "plain"}],
    "text": "text.txt",
    "evaluate": {
        "evaluators": ["reliability", "locality", "perplexity"],
        "max_new_tokens": 6,
        "probe_tokens": 4,
        "drift_questions": 2,
        "drift_tokens": 4,
        "perplexity_tokens": 64,
    },
}


def write_data(folder: Path) -> None:
    """Edits and a text."""
    rows = [
        {
            "id": name,
            "prompt": f"What of the {name}?",
            "target": f"It is {i}.",
            "locality": [{"prompt": f"Who has no {name}?"}],
        }
        for i, name in enumerate(NAMES)
    ]
    (folder / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "text.txt").write_text("\n".join(CORPUS), encoding="utf-8")


class Killer:
    """A listener that kills the process when it is told of a step in this stage."""

    def __init__(self, stage: str) -> None:
        self._fatal, self._stage = stage, ""

    def stage(self, name: str, total: int) -> None:
        self._stage = name

    def step(self, advance: int = 1, **info: float | str) -> None:
        if self._stage == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def run(
    data: Path,
    out: Path,
    progress: Progress | None = None,
    keep_packs: bool = False,
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The bench on a tiny Llama whose answers soon stop."""
    torch.set_num_threads(1)
    model = tiny_model()
    model.generation_config.eos_token_id = list(range(0, VOCAB, 8))
    settings = BenchConfig.from_mapping(config or CONFIG)
    return run_bench(
        model, tiny_tokenizer(), settings, out, data_folder=data, keep_packs=keep_packs, progress=progress
    )


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), Killer(sys.argv[3]))
