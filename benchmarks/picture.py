"""A picture of what a command prints: the command is run, and its output drawn as a terminal shows it.

    python benchmarks/picture.py docs/apply.svg apply --model M --edits examples/edits.jsonl --out build/brisa

The picture needs no fonts from elsewhere.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
from pathlib import Path

from common import ROOT
from rich.console import Console
from rich.text import Text


COLUMNS = 96
FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the SVG file")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a verb of hf-edit and its options")
    arguments = parser.parse_args()
    surroundings = {**os.environ, "COLUMNS": str(COLUMNS), "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    run = [str(Path(sys.executable).with_name("hf-edit")), *arguments.command]
    printed = subprocess.run(run, cwd=ROOT.parent, env=surroundings, stdout=subprocess.PIPE, text=True, check=True)
    arguments.out.write_text(drawn(" ".join(["$ hf-edit", *arguments.command]), printed.stdout), encoding="utf-8")


def drawn(command: str, printed: str) -> str:
    """The SVG of a command and of what it printed, which may steer a terminal's colours."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text(command, style="bold"))
    console.print(Text.from_ansi(printed))
    return FONT_FACE.sub("", console.export_svg(title="hf-edit"))


if __name__ == "__main__":
    main()
