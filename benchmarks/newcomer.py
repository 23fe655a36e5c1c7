"""How long a newcomer's path takes, from a checkout and Python alone: install, edit, load, share, take back.

A clone of this checkout's last commit with an empty cache and a virtual environment of its own; the Hub is the tests'
loopback one. Every step is what a newcomer types, timed from outside.

    python benchmarks/newcomer.py
    python benchmarks/newcomer.py --keep build/newcomer
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, environment, write


sys.path.insert(0, str(ROOT.parent))

from tests.loopback_hub import LoopbackHub  # noqa: E402


PROJECT = ROOT.parent
BASE, PACK, PULLED, LESS = "build/demo/base", "packs/brisa", "packs/pulled", "packs/less"
PUBLISHED = "HuggingFaceTB/SmolLM2-135M-Instruct"
PATH = {
    "install and see the demo": ["make", "demo"],
    "edit": ["hf-edit", "apply", "--model", BASE, "--edits", "examples/edits.jsonl", "--out", PACK],
    "load": ["python", "examples/plain_transformers.py", BASE, PACK, "Which company makes the Brisa lamp?"],
    "share": ["hf-edit", "push", PACK, "me/brisa", "--tag", "v1", "--base-model", PUBLISHED],
    "fetch": ["hf-edit", "pull", "me/brisa", "--revision", "v1", "--out", PULLED],
    "take one back": ["hf-edit", "revert", PULLED, "brisa-bulb", "--model", BASE, "--out", LESS],
}
"""Step -> its command, in the clone, with the virtual environment's programs first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="where the clone is left; none: it is removed")
    parser.add_argument("--name", default="newcomer", help="name of the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = walked(arguments.keep or Path(folder) / "hf-edit")
    print(f"{sum(seconds.values()):6.0f} s in all")
    print(write(arguments.name, {"seconds": seconds, "environment": environment()}))


def walked(clone: Path) -> dict[str, float]:
    """Seconds of each step."""
    subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(clone)], check=True)
    found: dict[str, float] = {}
    with LoopbackHub() as hub:
        hub.users["token"] = "me"
        surroundings = {
            **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_OFFLINE")},
            "PATH": f"{clone.resolve() / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "HF_EDIT_CACHE": str(clone.resolve() / "build" / "cache"),
            "HF_HOME": str(clone.resolve() / "build" / "hub"),
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "token",
            "HF_HUB_DISABLE_XET": "1",  # which the loopback Hub does not speak
        }
        for step, command in PATH.items():
            started = time.perf_counter()
            subprocess.run(command, cwd=clone, env=surroundings, check=True)
            found[step] = time.perf_counter() - started
            print(f"{found[step]:6.0f} s  {step}: {' '.join(command)}", flush=True)
    return found


if __name__ == "__main__":
    main()
