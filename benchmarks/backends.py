"""AnyEdit's backends with every chunker on the same records, one edit in a pack, as a table.

The targets of a chunker are found once, for all records in lockstep, and serve each of its backends; their seconds are
added to those of the solve. A row is a run of long_form.py; rows that are there already are not run again, so a killed
table goes on where it was.

    python benchmarks/backends.py --unke 112:132
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import BASE, RESULTS, ROOT, chosen, data_folder, seconds

import hf_edit
from hf_edit import AnyEditConfig
from hf_edit.datasets import unke
from hf_edit.edits import EditSet
from hf_edit.models.loading import load_model


CHUNKERS = ("window", "sentence", "surprisal", "none")
BACKENDS = ("memit", "alphaedit", "unke")
COLUMNS = {
    "exact": "exact",
    "rouge_l": "ROUGE-L",
    "rouge_l_paraphrase": "of paraphrases",
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
    parser.add_argument("--chunkers", default=",".join(CHUNKERS))
    parser.add_argument("--backends", default=",".join(BACKENDS), help="each with every chunker")
    parser.add_argument(
        "--direct", action=argparse.BooleanOptionalAction, default=True, help="the default beside them"
    )
    arguments = parser.parse_args()
    print(f"| backend | chunks | {' | '.join(COLUMNS.values())} |\n|{'---|' * (len(COLUMNS) + 2)}", flush=True)
    for chunker in filter(None, arguments.chunkers.split(",")):
        targets = found_targets(arguments.model, arguments.unke, chunker)
        for backend in arguments.backends.split(","):
            show(backend, chunker, row(arguments.model, arguments.unke, backend, chunker), targets)
    if arguments.direct:
        show("direct", "none", row(arguments.model, arguments.unke, "direct", None), 0.0)


def show(backend: str, chunker: str, figures: dict[str, Any], targets: float) -> None:
    """One line of the table."""
    means = {name: figures[name]["mean"] for name in COLUMNS}
    means["seconds_per_edit"] += targets
    print(f"| {backend} | {chunker} | {' | '.join(f'{value:.3g}' for value in means.values())} |", flush=True)


def checkpoints(records: str, chunker: str) -> Path:
    """Where the targets of a chunker are kept."""
    return ROOT.parent / "build" / "backends" / f"{_slug(records)}_{chunker}"


def found_targets(model: str, records: str, chunker: str) -> float:
    """Find the targets of all records as for packs of one; seconds per edit."""
    folder = checkpoints(records, chunker)
    done = folder / "seconds.json"
    if not done.exists():
        base, tokenizer = load_model(model)
        data = unke.read(data_folder() / "unke.json")
        edits = EditSet(data[i] for i in chosen(records, len(data)))
        # several edits begin with a smaller clamp than one does; these are to serve packs of one
        config = AnyEditConfig(chunker=chunker, overshoot=True)
        taken = seconds(lambda: hf_edit.edit(base, tokenizer, edits, config, resume_dir=folder))
        done.write_text(json.dumps(taken / len(edits)))
    return float(json.loads(done.read_text()))


def row(model: str, records: str, backend: str, chunker: str | None) -> dict[str, Any]:
    """Means with intervals of one combination."""
    name = f"backends_{_slug(records)}_{backend}_{chunker or 'none'}"
    result = RESULTS / f"{name}.json"
    if not _complete(result, records):
        settings = [f"backend={backend}"]
        command = [sys.executable, str(ROOT / "long_form.py"), "--model", model, "--unke", records, "--name", name]
        command += ["--method", "anyedit", "--editeverything", ""]
        if chunker is not None:
            settings.append(f"chunker={chunker}")
            command += ["--resume", str(checkpoints(records, chunker))]
        subprocess.run(
            [*command, *(part for one in settings for part in ("--set", one))], check=True, stdout=sys.stderr
        )
    summary: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))["summary"]["unke"]
    return summary


def _slug(records: str) -> str:
    return records.replace(":", "_").replace(",", "_")


def _complete(result: Path, records: str) -> bool:
    """Whether a run of long_form.py, which writes after every record, came to its end."""
    if not result.exists():
        return False
    return len(json.loads(result.read_text(encoding="utf-8"))["records"]) == len(chosen(records, sys.maxsize))


if __name__ == "__main__":
    main()
