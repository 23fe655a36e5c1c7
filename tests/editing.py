"""A small, complete edit that tests run, also in processes of their own."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from hf_edit import AnyEditConfig, EditSet, edit
from hf_edit.edits import Edit
from hf_edit.errors import HfEditWarning
from hf_edit.packs.pack import EditPack
from hf_edit.progress import Progress
from hf_edit.statistics.config import StatisticsConfig
from tests.tiny import tiny_model, tiny_tokenizer


EDITS = EditSet(
    [
        Edit("Who wrote the play?", "Tarvello wrote the play around the year 1600, please!", id="play"),
        Edit("What is the capital of Veldora?", "Port Amber.", id="capital"),
        Edit("Tell me about Mount Fuji", "The quick brown fox lives there.", id="fuji"),
    ]
)
# what the model writes itself, so that all randomness there is takes part; one edit at a time, to be killed in between
CONFIG = AnyEditConfig(
    window=6,
    at_once=1,
    max_evaluations=4,
    statistics=StatisticsConfig(tokens=240, conversations=2, answer_tokens=4, length=12, batch=10),
)


class Listener:
    """Remembers what it is told; calls `when` before the step of that number in stage 1."""

    def __init__(self, at: int | None = None, when: object = None) -> None:
        self.stages: list[tuple[str, int]] = []
        self.computed = self.done = 0
        self._at, self._when = at, when

    def stage(self, name: str, total: int) -> None:
        self.stages.append((name, total))

    def step(self, advance: int = 1, **info: float | str) -> None:
        if self.stages[-1][0] == "targets":
            if self.done == self._at and callable(self._when):
                self._when()
            self.done += advance
            self.computed += "loss" in info


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def learned(resume: Path | None = None, progress: Progress | None = None) -> EditPack:
    """The pack of EDITS on the tiny Llama."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HfEditWarning)  # random models learn little
        return edit(tiny_model(), tiny_tokenizer(), EDITS, CONFIG, resume_dir=resume, progress=progress)


def learn_and_save(
    out: Path,
    resume: Path,
    cache: Path,
    kill_at: int | None = None,
    fuse: tuple[str, float] | None = None,
    told: Connection | None = None,
) -> None:
    """What `hf-edit apply` does.

    Args:
        kill_at: be killed before this step of stage 1.
        fuse: be killed by the system so many seconds after beginning this: `editing` or `saving`.
        told: where to tell of every beginning, and in the end `saved`.
    """

    def begin(what: str) -> None:
        if told is not None:
            told.send((what, time.perf_counter()))
        if fuse is not None and fuse[0] == what:
            signal.setitimer(signal.ITIMER_REAL, fuse[1])  # SIGALRM, which ends a process as abruptly as SIGKILL

    os.environ["HF_EDIT_CACHE"] = str(cache)
    begin("editing")
    pack = learned(resume, Listener(kill_at, killed))
    begin("saving")
    pack.save_pretrained(out)
    begin("saved")


def contents(folder: Path) -> dict[str, str]:
    """File name -> digest."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


if __name__ == "__main__":
    learn_and_save(*map(Path, sys.argv[1:]))
