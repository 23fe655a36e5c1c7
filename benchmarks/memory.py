"""Memory that edits take beside the model at its peak: with all there is, and under a budget.

    python benchmarks/memory.py
    python benchmarks/memory.py --anyedit 1 --polish 2 --emsedit 4 --steps 1 --name memory_small

Three cases: AnyEdit (backend memit) of one UnKE record, allowed half the model's size; many UnKE records polished in
one pack, allowed the model's size; EMSEdit of zsRE facts at once, allowed as much. Each runs without a budget and with
half of what it is allowed (`--budget-share`), in a process of its own that gives freed blocks back at once. Two edits
are computed before, which also collects the statistics, so that what is loaded once does not count.

`beyond` is what the process grew by at its peak, or what the accelerator says; `counted` the tensors alone, which is
what a budget is about. `apart` is how far the two updates are from each other, as a share of their size: rounding.
The model writes 16 texts at a time, as what it writes depends on how many, and so no budget cuts that.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import BASE, data_folder, environment, give_back_freed, trim, write

import hf_edit
from hf_edit import EditPack
from hf_edit.datasets import unke, zsre
from hf_edit.edits import EditSet
from hf_edit.errors import HfEditWarning, MemoryBudgetError
from hf_edit.methods.anyedit.config import AnyEditConfig
from hf_edit.methods.msbp.config import EMSEditConfig
from hf_edit.methods.polish.config import PolishConfig
from hf_edit.models.footprint import peak_over
from hf_edit.models.loading import load_model
from hf_edit.statistics.config import StatisticsConfig


ALLOWED = {"anyedit": 0.5, "polish": 1.0, "emsedit": 1.0}
"""Share of the model's size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--anyedit", type=int, default=1, help="edits by AnyEdit; 0: not measured")
    parser.add_argument("--polish", type=int, default=100, help="edits polished; 0: not measured")
    parser.add_argument("--emsedit", type=int, default=100, help="edits by EMSEdit; 0: not measured")
    parser.add_argument("--steps", type=int, help="most steps of each; none: as by default")
    parser.add_argument("--budget-share", type=float, default=0.5, help="of what is allowed")
    parser.add_argument("--name", default="memory", help="name of the result")
    arguments = parser.parse_args()

    counts = {case: getattr(arguments, case) for case in ALLOWED}
    result: dict[str, Any] = {"environment": environment(), "budget_share": arguments.budget_share}
    with TemporaryDirectory() as folder:
        for case, count in counts.items():
            if count:
                result[case] = measured(
                    case, count, arguments.model, arguments.steps, arguments.budget_share, Path(folder)
                )
                print(case, result[case], flush=True)
    print(write(arguments.name, result))


def measured(case: str, count: int, model: str, steps: int | None, share: float, folder: Path) -> dict[str, Any]:
    """One case without a budget and with one, and how far the two are apart."""
    packs = [folder / f"{case}-{name}" for name in ("free", "budget")]
    free = alone(case, count, model, steps, None, packs[0])
    budget = int(share * ALLOWED[case] * free["base"])
    within = alone(case, count, model, steps, budget, packs[1])
    apart = None if "refused" in within else distance(*map(EditPack.from_pretrained, packs))
    return {"edits": count, "allowed": ALLOWED[case], "free": free, "budget": budget, "within": within, "apart": apart}


def alone(*arguments: Any) -> dict[str, Any]:
    """`run` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: dict[str, Any] = pool.apply(run, arguments)
    return found


def run(case: str, count: int, model: str, steps: int | None, budget: int | None, out: Path) -> dict[str, Any]:
    """Bytes beside the model at the peak of one edit, and its seconds."""
    warnings.simplefilter("ignore", HfEditWarning)
    give_back_freed()
    base, tokenizer = load_model(model)
    edits, config = edits_of(case, count), settings(case, steps)
    hf_edit.edit(base, tokenizer, edits[:2], settings(case, 1))
    trim()
    size = sum(parameter.numel() * parameter.element_size() for parameter in base.parameters())
    started = time.perf_counter()
    try:
        with peak_over(base.device) as taken:
            pack = hf_edit.edit(base, tokenizer, edits, config, memory_budget=budget)
    except MemoryBudgetError as error:
        return {"base": size, "refused": str(error)}
    seconds = time.perf_counter() - started
    pack.save_pretrained(out)
    return {
        "base": size,
        "beyond": taken.beyond,
        "share": taken.beyond / size,
        "counted": pack.peak_memory if budget is not None else None,
        "of": "accelerator" if base.device.type == "cuda" else "resident set",
        "seconds": round(seconds, 2),
    }


def edits_of(case: str, count: int) -> EditSet:
    """Long answers, or short facts for the family that learns these."""
    if case == "emsedit":
        return EditSet(zsre.read(data_folder() / "zsre_train.json")[:count])
    return EditSet(unke.read(data_folder() / "unke.json")[:count])


def settings(case: str, steps: int | None) -> Any:
    """The method's own, but for how much is written at once, and the number of steps."""
    written = StatisticsConfig(batch=16)
    if case == "anyedit":
        return AnyEditConfig(statistics=written, **({} if steps is None else {"max_evaluations": steps}))
    if case == "emsedit":
        return EMSEditConfig(format="plain", steps=steps, statistics=written)
    polish = PolishConfig(statistics=written)
    return polish if steps is None else replace(polish, training=replace(polish.training, max_steps=steps))


def distance(a: EditPack, b: EditPack) -> float:
    """Of the updates, as a share of their size: the largest over the linears."""
    return max(
        float((a.deltas[name].dense() - b.deltas[name].dense()).norm() / a.deltas[name].dense().norm())
        for name in a.deltas
    )


if __name__ == "__main__":
    main()
