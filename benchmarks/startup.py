"""How long the command line takes to say what it can do, and what `import hf_edit` adds to transformers and peft.

    python benchmarks/startup.py

Fresh processes in turn, after one round that is not counted. Wall time is what a user waits; CPU time is the figure on
a machine that has other things to do. To be held: `hf-edit --help` within half a second, and a tenth more for imports.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from statistics import median
from typing import Any

from common import environment, write


PLAIN = "import transformers, peft"
RUNS: Mapping[str, tuple[str, ...]] = {
    "help": ("from hf_edit.cli.main import main; main()", "--help"),
    "plain": (PLAIN,),
    "hf_edit last": (f"{PLAIN}, hf_edit",),
    "hf_edit first": (f"import hf_edit; {PLAIN}",),
}
"""Name -> what Python is given behind `-c`. hf_edit makes its PEFT type known once both are imported, so both ways."""
HELP, SHARE = 0.5, 0.10
"""Seconds, and the share of the plain imports, that are not to be exceeded."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="processes of each kind")
    parser.add_argument("--name", default="startup", help="of the file in benchmarks/results")
    arguments = parser.parse_args()
    turns = [{name: seconds(run) for name, run in RUNS.items()} for _ in range(1 + arguments.turns)][1:]
    found = {clock: summary(turns, clock) for clock in ("wall", "cpu")}
    for clock, one in found.items():
        added = " ".join(f"{name} {share:+.1%}" for name, share in one["added"].items())
        print(f"{clock}: --help {one['seconds']['help']:.2f} s, {PLAIN} {one['seconds']['plain']:.2f} s; {added}")
    print(write(arguments.name, {"turns": arguments.turns, **found, "environment": environment()}))


def seconds(run: tuple[str, ...]) -> dict[str, float]:
    """Of one fresh process, by the clock on the wall and by the processor's."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", *run], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{run} failed")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime}


def summary(turns: list[dict[str, dict[str, float]]], clock: str) -> dict[str, Any]:
    """Medians, and whether they keep to the limits."""
    medians = {name: median(turn[name][clock] for turn in turns) for name in RUNS}
    added = {name: medians[name] / medians["plain"] - 1 for name in RUNS if name.startswith("hf_edit")}
    return {
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "added": {name: round(value, 4) for name, value in added.items()},
        "held": medians["help"] <= HELP and max(added.values()) <= SHARE,
    }


if __name__ == "__main__":
    main()
