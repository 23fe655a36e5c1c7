"""AnyEdit's backends with every chunker on the same records, one edit at a time, as a table.

A row is a run of long_form.py; rows that are there already are not run again, so a killed table goes on where it was.

    python benchmarks/backends.py --unke 112:132
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import BASE, RESULTS, ROOT, chosen


CHUNKERS = ("window", "sentence", "surprisal", "none")
BACKENDS = ("memit", "alphaedit", "unke")
ROWS = [*((backend, chunker) for backend in BACKENDS for chunker in CHUNKERS), ("direct", "none")]
COLUMNS = {
    "exact": "exact",
    "rouge_l_paraphrase": "ROUGE-L of paraphrases",
    "kl_chat": "KL chat",
    "kl_strangers": "KL strangers",
    "perplexity_change": "perplexity",
    "rank": "rank",
    "seconds_per_edit": "s per edit",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--unke", default="112:132", help="indices of records")
    arguments = parser.parse_args()
    print(f"| backend | chunks | {' | '.join(COLUMNS.values())} |\n|{'---|' * (len(COLUMNS) + 2)}", flush=True)
    for backend, chunker in ROWS:
        figures = row(arguments.model, arguments.unke, backend, chunker)
        cells = (f"{figures[name]['mean']:.3g}" for name in COLUMNS)
        print(f"| {backend} | {chunker} | {' | '.join(cells)} |", flush=True)


def row(model: str, records: str, backend: str, chunker: str) -> dict[str, Any]:
    """Means with intervals of one combination."""
    name = f"backends_{records.replace(':', '_').replace(',', '_')}_{backend}_{chunker}"
    result = RESULTS / f"{name}.json"
    if not _complete(result, records):
        settings = [f"backend={backend}", f"chunker={chunker}"]
        command = [sys.executable, str(ROOT / "long_form.py"), "--model", model, "--unke", records, "--name", name]
        command += ["--editeverything", "", *(part for setting in settings for part in ("--set", setting))]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return json.loads(result.read_text(encoding="utf-8"))["summary"]["unke"]


def _complete(result: Path, records: str) -> bool:
    """Whether a run of long_form.py, which writes after every record, came to its end."""
    if not result.exists():
        return False
    return len(json.loads(result.read_text(encoding="utf-8"))["records"]) == len(chosen(records, sys.maxsize))


if __name__ == "__main__":
    main()
