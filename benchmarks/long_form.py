"""Long-form edits, alone or many in one pack: UnKE and EditEverything records, free generation, natural stop.

The records are edited in packs of `--together`, each pack is attached, everything is measured, and it is detached.
Records are chosen by index; settings must have been chosen on others. Run it from the root of the checkout after
`make demo`:

    python benchmarks/long_form.py --unke 116:128 --editeverything 60:66 --name alone
    python benchmarks/long_form.py --unke 116:132 --together 16 --method finetune --name finetune_16
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import BASE, chosen, data_folder, environment, mean_interval, shown, write
from long_answers import LongAnswers

import hf_edit
from hf_edit.cli.inputs import read_settings
from hf_edit.datasets import editeverything, unke
from hf_edit.edits import Edit, EditSet
from hf_edit.evaluation.scores import exact, rouge_l
from hf_edit.methods import METHODS, default_config, method_for
from hf_edit.models.editable import EditableModel
from hf_edit.models.loading import load_model
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.store import obtain


SHOWN = ("exact", "rouge_l", "rouge_l_paraphrase")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--unke", default="116:128", help="indices of records")
    parser.add_argument("--editeverything", default="60:66", help="indices of records")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the method")
    parser.add_argument("--method", choices=METHODS, help="none: what edit() does without settings")
    parser.add_argument("--together", type=int, default=1, help="records in one pack")
    parser.add_argument("--resume", type=Path, help="folder of what earlier runs found, such as targets")
    parser.add_argument(
        "--packs", type=Path, help="folder where the packs are saved, by the number of their first record"
    )
    parser.add_argument("--perplexity", type=int, default=2048, help="tokens of WikiText")
    parser.add_argument("--name", default="long_form", help="name of the result")
    arguments = parser.parse_args()

    model, tokenizer = load_model(arguments.model)
    settings = read_settings(None, arguments.set, {})
    if arguments.method is None:
        settings = default_config().to_json() | settings
    config: Any = METHODS[arguments.method or "anyedit"].config_class.from_mapping(settings)
    prompts = PromptFormat.of(config.format, tokenizer)
    data = data_folder()
    long_form = unke.read(data / "unke.json")
    records = [("unke", long_form[i]) for i in chosen(arguments.unke, len(long_form))]
    everything = editeverything.read(data / "editeverything.json")
    records += [("editeverything", everything[i]) for i in chosen(arguments.editeverything, len(everything))]

    base = LongAnswers.of(model, tokenizer, prompts, arguments.perplexity)
    started = time.perf_counter()
    view = EditableModel.of(model)
    linears = method_for(config).linears(view)
    obtain(view, prompts, linears, config.statistics, config.seed, Silent())
    statistics_seconds = time.perf_counter() - started

    rows: list[dict[str, Any]] = []
    packs: list[dict[str, Any]] = []
    for begin in range(0, len(records), arguments.together):
        group = records[begin : begin + arguments.together]
        edits = EditSet(edit for _, edit in group)
        started, worked = time.perf_counter(), time.process_time()
        pack = hf_edit.edit(model, tokenizer, edits, config, resume_dir=arguments.resume)
        seconds, worked = time.perf_counter() - started, time.process_time() - worked
        if arguments.packs is not None:
            pack.save_pretrained(arguments.packs / str(begin))
        name = hf_edit.attach(model, pack)
        rows += _answers(base, group)
        packs.append(
            {
                "edits": len(group),
                **base.elsewhere(),
                "seconds_per_edit": seconds / len(group),
                "cpu_seconds_per_edit": worked / len(group),
                "steps": max((one.get("steps", 0) for one in pack.manifest.receipt.values()), default=0),
                "rank": max(delta.rank for delta in pack.deltas.values()),
                "delta_norm": sum(delta.norm() ** 2 for delta in pack.deltas.values()) ** 0.5,
            }
        )
        hf_edit.detach(model, name)
        for row in rows[-len(group) :]:
            row["pack"] = len(packs) - 1
            print(row["id"], shown({key: row[key] for key in SHOWN}), flush=True)
        print("pack", shown(packs[-1]), flush=True)

        summary = {kind: _summary(kind, rows, packs) for kind in dict.fromkeys(row["data"] for row in rows)}
        path = write(
            arguments.name,
            {
                "what": "long-form edits, greedy free generation with natural stop",
                "method": arguments.method or "default",
                "together": arguments.together,
                "config": config.to_json(),
                "perplexity_before": base.perplexity,
                "statistics_seconds": statistics_seconds,
                "summary": summary,
                "environment": environment(),
                "packs": packs,
                "records": rows,
            },
        )
    for kind, figures in summary.items():
        print(kind, *(f"{key}={value['mean']}" for key, value in figures.items() if value))
    print(path)


def _answers(base: LongAnswers, group: Sequence[tuple[str, Edit]]) -> list[dict[str, Any]]:
    """What the edited model says to each record's question and its paraphrases."""
    rows = []
    for (kind, edit), answers in zip(group, base.answers([edit for _, edit in group]), strict=True):
        rows.append(
            {
                "data": kind,
                "id": edit.id,
                "exact": exact(answers[0], edit.target),
                "rouge_l": rouge_l(answers[0], edit.target),
                "rouge_l_paraphrase": [rouge_l(answer, edit.target) for answer in answers[1:]],
                "answer_tokens": len(base.prompts.encode(edit.prompt, edit.target).answer_ids),
                "target": edit.target,
                "answers": answers,
            }
        )
    return rows


def _summary(kind: str, rows: Sequence[dict[str, Any]], packs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means with intervals: over the records of a kind, and over the packs that hold any of them."""
    columns: dict[str, list[float]] = defaultdict(list)
    mine = [row for row in rows if row["data"] == kind]
    for row in [*mine, *(packs[i] for i in dict.fromkeys(row["pack"] for row in mine))]:
        for key, value in row.items():
            if key != "pack" and isinstance(value, bool | int | float):
                columns[key].append(float(value))
    columns["rouge_l_paraphrase"] = [value for row in mine for value in row["rouge_l_paraphrase"]]
    return {key: mean_interval(values) for key, values in columns.items()}


if __name__ == "__main__":
    main()
