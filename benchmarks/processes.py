"""One process with one thread against several, on the same machine: seconds, and whether the pack is the same.

    python benchmarks/processes.py --unke 100:108
    python benchmarks/processes.py --unke "" --zsre 200:300 --method emsedit --set format=plain

Each number of processes starts with an empty cache, so that the text of the statistics, the moments over it and the
edits are timed apart. Loading the model does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from common import BASE, chosen, data_folder, environment, write

import hf_edit
from hf_edit.cli.inputs import read_settings
from hf_edit.datasets import unke, zsre
from hf_edit.edits import EditSet
from hf_edit.errors import HfEditWarning
from hf_edit.methods import METHODS, method_for
from hf_edit.models.editable import EditableModel
from hf_edit.models.loading import load_model
from hf_edit.packs.pack import EditPack
from hf_edit.processes import Processes, is_first
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.store import obtain, obtain_corpus


EPSILON = torch.finfo(torch.float32).tiny
STAGES = ("corpus", "moments", "edits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--unke", default="100:108", help="indices of records")
    parser.add_argument("--zsre", default="", help="indices of records of the training file, instead")
    parser.add_argument("--method", default="anyedit", choices=METHODS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the method")
    parser.add_argument(
        "--processes", default="1,2", help="how many, with one thread each; the first is compared with"
    )
    parser.add_argument("--name", default="processes", help="name of the result")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)  # this is one of the processes
    arguments = parser.parse_args()
    if arguments.out is not None:
        work(arguments)
        return

    runs: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in map(int, arguments.processes.split(",")):
            out = Path(folder) / str(count)
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
            surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "HF_EDIT_CACHE": str(out / "cache")}
            subprocess.run([*launch, __file__, *sys.argv[1:], "--out", str(out)], env=surroundings, check=True)
            runs[count] = json.loads((out / "seconds.json").read_text())
            print(count, "process(es):", *(f"{stage} {runs[count][stage]:.1f} s" for stage in STAGES), flush=True)
        packs = [EditPack.from_pretrained(Path(folder) / str(count) / "pack") for count in runs]
    first, *others = runs.values()
    result = {
        "what": f"{len(packs[0].edits)} edits by {arguments.method}, one thread in each process",
        "config": packs[0].manifest.method.config,
        "seconds": runs,
        "times_faster": [{stage: first[stage] / seconds[stage] for stage in STAGES} for seconds in others],
        "largest_difference": [difference(packs[0], pack) for pack in packs[1:]],
        "environment": environment(),
    }
    for count, faster, other in zip(list(runs)[1:], result["times_faster"], result["largest_difference"], strict=True):
        shown = ", ".join(f"{stage} {faster[stage]:.2f}x" for stage in STAGES)
        print(f"{count} processes: {shown}; the update differs by {other:.1e} of its norm")
    print(write(arguments.name, result))


def work(arguments: Any) -> None:
    """What each process does: the statistics that the method needs, then the edits; the first writes both down."""
    torch.set_num_threads(1)
    model, tokenizer = load_model(arguments.model, device="cpu")
    data = data_folder()
    kind = (zsre, "zsre_train.json", arguments.zsre) if arguments.zsre else (unke, "unke.json", arguments.unke)
    records = kind[0].read(data / kind[1])
    edits = EditSet(records[i] for i in chosen(kind[2], len(records)))
    settings = {"backend": "memit"} if arguments.method == "anyedit" else {}
    config: Any = METHODS[arguments.method].config_class.from_mapping(
        settings | read_settings(None, arguments.set, {})
    )
    view, prompts = EditableModel.of(model), PromptFormat.of(config.format, tokenizer)
    linears = method_for(config).linears(view)
    processes = Processes.joined(view.device)
    seconds: dict[str, float] = {}
    warnings.simplefilter("ignore", HfEditWarning)
    for stage, compute in (
        ("corpus", lambda: obtain_corpus(view, prompts, config.statistics, config.seed, Silent())),
        ("moments", lambda: obtain(view, prompts, linears, config.statistics, config.seed, Silent())),
        ("edits", lambda: hf_edit.edit(model, tokenizer, edits, config)),
    ):
        processes.wait()
        started = time.perf_counter()
        made = compute()
        processes.wait()
        seconds[stage] = time.perf_counter() - started
    if is_first():
        assert isinstance(made, EditPack)
        arguments.out.mkdir(exist_ok=True)
        made.save_pretrained(arguments.out / "pack")
        (arguments.out / "seconds.json").write_text(json.dumps(seconds))


def difference(one: EditPack, other: EditPack) -> float:
    """|dW - dW'| / |dW|, the largest of any map."""
    deltas = ((delta.dense(), other.deltas[name].dense()) for name, delta in one.deltas.items())
    return max(float((a - b).norm() / a.norm().clamp_min(EPSILON)) for a, b in deltas)


if __name__ == "__main__":
    main()
