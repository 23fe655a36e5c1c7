"""Support size against efficacy and locality: a pack solved anew on fewer and fewer columns, beside the pack itself.

With `--trained`, its edits are computed anew too, by the default method on a budget of columns.

Each version is attached, every edit's prompt and paraphrases are asked freely, the divergence on unrelated questions
and on questions of the same kind is measured, and it is detached. Run it from the root of the checkout after
`make demo`:

    python benchmarks/sparse.py build/demo/pack --columns 16,32,64,128,256 --ranks 8,16,32,64 --trained 64,128
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from typing import Any

from common import BASE, environment, mean_interval, shown, write
from long_answers import LongAnswers

import hf_edit
from hf_edit import AnyEditConfig, EditPack, SparsifyConfig
from hf_edit.cli.inputs import read_settings
from hf_edit.compose.sparsify import moments_for
from hf_edit.edits import Edit
from hf_edit.evaluation.scores import exact, rouge_l
from hf_edit.models.loading import load_model
from hf_edit.prompting import PromptFormat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", help="directory or id of the pack")
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--columns", default="16,32,64,128,256", help="columns of each weight, separated by commas")
    parser.add_argument("--ranks", default="", help="also truncations to these ranks, best for the outputs")
    parser.add_argument("--trained", default="", help="also the edits computed anew on so many columns of each weight")
    parser.add_argument("--asked", type=int, help="edits that are asked, spread over the pack; none: all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the solve")
    parser.add_argument("--name", default="sparse", help="name of the result")
    arguments = parser.parse_args()

    model, tokenizer = load_model(arguments.model)
    pack = EditPack.from_pretrained(arguments.pack)
    config = SparsifyConfig.from_mapping(read_settings(None, arguments.set, {}))
    prompts = PromptFormat.of(pack.manifest.prompt_format.name, tokenizer)
    base = LongAnswers.of(model, tokenizer, prompts)
    asked = pack.edits[:: math.ceil(len(pack.edits) / (arguments.asked or len(pack.edits)))]
    rows: list[dict[str, Any]] = []

    def measure(what: str, size: int | None, version: EditPack, layout: str, seconds: float) -> None:
        name = hf_edit.attach(model, version)
        row = {
            "what": what,
            "size": size,
            "bytes": _bytes(version, layout),
            "seconds": seconds,
            **_answers(base, asked),
            **base.elsewhere(),
        }
        hf_edit.detach(model, name)
        rows.append(row)
        print(shown(row), flush=True)
        write(
            arguments.name,
            {
                "what": "a pack as it is, on few columns and truncated: greedy free generation with natural stop",
                "pack": {
                    "method": pack.manifest.method.name,
                    "edits": len(pack.edits),
                    "asked": len(asked),
                    "ids": list(pack.edits.ids),
                },
                "config": config.to_json(),
                "perplexity_before": base.perplexity,
                "environment": environment(),
                "rows": rows,
            },
        )

    measure("pack", None, pack, "compact", 0.0)
    started = time.perf_counter()
    moments = moments_for(pack, model=model, tokenizer=tokenizer, config=config)
    print(f"statistics: {time.perf_counter() - started:.1f} s", flush=True)
    for columns in map(int, filter(None, arguments.columns.split(","))):
        started = time.perf_counter()
        sparse = hf_edit.sparsify(pack, model=model, tokenizer=tokenizer, columns=columns, config=config)
        measure("columns", columns, sparse, "sparse", time.perf_counter() - started)
    for columns in map(int, filter(None, arguments.trained.split(","))):
        started = time.perf_counter()
        settings = AnyEditConfig(backend="direct", format=prompts.name, columns=columns)
        trained = hf_edit.edit(model, tokenizer, pack.edits, settings)
        measure("trained", columns, trained, "sparse", time.perf_counter() - started)
    for rank in map(int, filter(None, arguments.ranks.split(","))):
        started = time.perf_counter()
        smaller, _ = pack.truncated(rank, moments=moments)
        measure("rank", rank, smaller, "compact", time.perf_counter() - started)


def _bytes(pack: EditPack, layout: str) -> int:
    """Size of the adapter's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in pack.adapter_state_dict(layout).values())


def _answers(base: LongAnswers, edits: Sequence[Edit]) -> dict[str, Any]:
    """How many edits are answered as asked, and how near the answers to other wordings come."""
    right: list[float] = []
    near: list[float] = []
    reworded: list[float] = []
    for edit, (answer, *others) in zip(edits, base.answers(edits), strict=True):
        right.append(float(exact(answer, edit.target)))
        near.append(rouge_l(answer, edit.target))
        reworded += [rouge_l(other, edit.target) for other in others]
    return {
        "exact": mean_interval(right),
        "rouge_l": mean_interval(near),
        "rouge_l_paraphrase": mean_interval(reworded),
    }


if __name__ == "__main__":
    main()
