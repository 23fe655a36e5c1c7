"""Where the time of an edit goes, operator by operator, for a method that learns from gradients.

    python benchmarks/profiling.py
    python benchmarks/profiling.py --polish 0 --emsedit 20 --name profiling_small

`polish` is the default of `edit()` on UnKE records, one pack; `emsedit` takes two steps of a fixed size on zsRE's
questions. Both are whole calls of `hf_edit.edit`, with the statistics there; two edits are computed before, so that
what is loaded and tried once does not count. AnyEdit's closed form has its profile in target_speed.py.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import torch
from common import BASE, data_folder, environment, seconds, write
from torch.profiler import ProfilerActivity, profile, record_function

import hf_edit
from hf_edit.datasets import unke, zsre
from hf_edit.edits import EditSet
from hf_edit.errors import HfEditWarning
from hf_edit.methods import default_config
from hf_edit.methods.msbp.config import EMSEditConfig
from hf_edit.models.loading import load_model


PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm")
ATTENTION = "attention"
AROUND = "outside of operators"
SHOWN = 12
FIRST = 100
"""Of the UnKE records."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--polish", type=int, default=1, help="long edits in the pack; 0: not measured")
    parser.add_argument("--emsedit", type=int, default=100, help="short facts; 0: not measured")
    parser.add_argument("--name", default="profiling", help="name of the result")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", HfEditWarning)

    model, tokenizer = load_model(arguments.model)
    long, short = unke.read(data_folder() / "unke.json")[FIRST:], zsre.read(data_folder() / "zsre_train.json")
    result: dict[str, Any] = {"threads": torch.get_num_threads()}
    for name, records, count, config in (
        ("polish", long, arguments.polish, default_config()),
        ("emsedit", short, arguments.emsedit, EMSEditConfig(format="plain", steps=2, step_size=5e-4)),
    ):
        if not count:
            continue
        before, edits = EditSet(records[count : count + 2]), EditSet(records[:count])
        hf_edit.edit(model, tokenizer, before, config)
        taken: list[dict[str, Any]] = []

        def work(edits: EditSet = edits, config: Any = config) -> None:
            hf_edit.edit(model, tokenizer, edits, config)

        def measure(work: Callable[[], None] = work, taken: list[dict[str, Any]] = taken) -> None:
            taken.append(profiled(work, model.device))

        result[name] = {"edits": count, "seconds": round(seconds(measure), 2), **taken[0]}
        print(name, result[name], flush=True)
    print(write(arguments.name, result | {"environment": environment()}))


def profiled(work: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Shares of the time that operators take themselves, on the accelerator where there is one.

    Else the processor's time outside of operators, Python's and the profiler's own, is a part as well: AROUND.
    """
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_cuda else []
    with profile(activities=[ProfilerActivity.CPU, *activities], acc_events=True) as profiler, record_function(AROUND):
        work()
    events = profiler.key_averages()
    if on_cuda:  # kernels are events beside the operators that start them
        taken = {event.key: event.self_device_time_total for event in events if event.key.startswith("aten::")}
    else:
        taken = {event.key: event.self_cpu_time_total for event in events}
    total = sum(taken.values())
    shares = {name: round(each / total, 4) for name, each in sorted(taken.items(), key=lambda item: -item[1])}
    rest = [name for name in shares if not is_product(name)]
    return {
        "of": "accelerator" if on_cuda else "processor",
        "in_matrix_products": sum(share for name, share in shares.items() if is_product(name)),
        "products": {name: share for name, share in shares.items() if share and is_product(name)},
        "rest": {name: shares[name] for name in rest[:SHOWN]},
    }


def is_product(operator: str) -> bool:
    """Whether an operator's own time is that of a matrix product, attention's among them."""
    return operator in PRODUCTS or ATTENTION in operator


if __name__ == "__main__":
    main()
