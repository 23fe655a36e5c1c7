"""What an attached pack costs at run time: a forward pass and generation, against the base in the same run.

The packs hold random factors in the blocks that `edit()` edits, as time does not depend on what they teach: one pack
of each of `--ranks`, `--packs` small ones stacked into one adapter, and the same attached side by side. Each version
is timed between two turns of the base, by the processor's own clock, so that other programs count less; the base
itself, timed as one more version, shows what is noise.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --ranks 32,64,256 --packs 50 --turns 30 --name overhead
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import torch
from common import BASE, environment, write

import hf_edit
from hf_edit import EditPack, PolishConfig
from hf_edit.edits import Edit, EditSet
from hf_edit.errors import HfEditWarning
from hf_edit.methods import method_for
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.models.loading import load_model
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta


PROMPT_TOKENS, NEW_TOKENS = 256, 32
SMALL_RANK = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--ranks", default="32,64,256", help="ranks of single packs")
    parser.add_argument("--packs", type=int, default=50, help="small packs, stacked and side by side")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--what", default="forward,generation", help="what is timed")
    parser.add_argument("--name", default="overhead", help="name of the result")
    arguments = parser.parse_args()

    warnings.simplefilter("ignore", HfEditWarning)  # a sum of packs warns that edits are lost
    model, tokenizer = load_model(arguments.model, dtype="float32")
    view = EditableModel.of(model)
    linears = method_for(PolishConfig()).linears(view)
    prompts = PromptFormat.of(None, tokenizer)
    small = [random_pack(view, linears, prompts, SMALL_RANK, seed) for seed in range(arguments.packs)]
    stacked = hf_edit.stack(small, model=model, tokenizer=tokenizer, mode="add")
    versions: dict[str, Sequence[EditPack]] = {
        "the base again": (),
        **{f"rank {r}": [random_pack(view, linears, prompts, r, 0)] for r in map(int, arguments.ranks.split(","))},
        f"{arguments.packs} packs stacked": [stacked],
        f"{arguments.packs} packs side by side": small,
    }
    ids = torch.arange(PROMPT_TOKENS)[None] % model.config.vocab_size

    def forward() -> None:
        model(input_ids=ids, use_cache=False)

    def generate() -> None:
        model.generate(ids[:, :32], do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)

    timed = {"forward": forward, "generation": generate}
    rows = []
    for what in arguments.what.split(","):
        for version, ratios in ratios_of(model, versions, timed[what], arguments.turns).items():
            ratios.sort()
            quarter = len(ratios) // 4
            row = {
                "what": what,
                "version": version,
                "overhead": median(ratios) - 1,
                "quartiles": [ratios[quarter] - 1, ratios[-1 - quarter] - 1],
            }
            rows.append(row)
            low, high = row["quartiles"]
            print(f"{what:10}  {version:24}  {row['overhead']:+.1%}  [{low:+.1%}, {high:+.1%}]", flush=True)
    what = (
        f"processor time over the base's, {PROMPT_TOKENS} tokens forward and {NEW_TOKENS} generated; medians of turns"
    )
    print(write(arguments.name, {"what": what, "turns": arguments.turns, "rows": rows, "environment": environment()}))


def random_pack(
    view: EditableModel, linears: Sequence[EditableLinear], prompts: PromptFormat, rank: int, seed: int
) -> EditPack:
    """A pack of one edit with small random factors."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {
        linear.name: LowRankDelta(
            torch.randn(linear.d_out, rank, generator=generator) * 1e-3,
            torch.randn(rank, linear.d_in, generator=generator) * 1e-3,
        )
        for linear in linears
    }
    return EditPack.build(
        view.model,
        deltas=deltas,
        edits=EditSet([Edit(f"Question {seed}?", f"Answer {seed}.", id=f"random-{seed}")]),
        source=None,
        method="polish",
        config={},
        seed=seed,
        prompt_format=prompts,
        receipt={},
    )


def ratios_of(
    model: Any, versions: dict[str, Sequence[EditPack]], run: Callable[[], None], turns: int
) -> dict[str, list[float]]:
    """Version -> processor seconds of each turn over the mean of the base's before and behind it."""
    run()
    ratios: dict[str, list[float]] = {version: [] for version in versions}
    for _ in range(turns):
        for version, packs in versions.items():
            before = seconds_of(run)
            with attached(model, packs):
                run()  # memory of the new shapes
                seconds = seconds_of(run)
            ratios[version].append(2 * seconds / (before + seconds_of(run)))
    return ratios


@contextmanager
def attached(model: Any, packs: Sequence[EditPack]) -> Any:
    """With packs on the model, side by side."""
    with ExitStack() as stack:
        for pack in packs:
            stack.callback(hf_edit.detach, model, hf_edit.attach(model, pack, verify=False))
        yield


@torch.no_grad()
def seconds_of(run: Callable[[], None]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


if __name__ == "__main__":
    main()
