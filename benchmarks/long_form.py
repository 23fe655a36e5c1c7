"""One long-form edit at a time: UnKE and EditEverything records on SmolLM2, free generation, natural stop.

Each record is edited alone into a pack, the pack is attached, everything is measured, the pack is detached. Records
are chosen by index; settings must have been chosen on others. Run it from the root of the checkout after `make demo`:

    python benchmarks/long_form.py --unke 112:124 --editeverything 60:66 --name long_form
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from typing import Any

from common import BASE, chosen, data_folder, environment, mean_interval, unrelated_questions, write

import hf_edit
from hf_edit.cli.inputs import read_settings
from hf_edit.datasets import editeverything, unke
from hf_edit.evaluation.answers import greedy_answers
from hf_edit.evaluation.drift import drift, perplexity, reference
from hf_edit.evaluation.scores import exact, rouge_l
from hf_edit.methods import method_for
from hf_edit.models.editable import EditableModel
from hf_edit.models.loading import load_model
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.store import obtain


STRANGERS = range(300, 308)  # UnKE records that are never edited
PERPLEXITY_TOKENS = 2048
SPARE_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--unke", default="112:124", help="indices of records")
    parser.add_argument("--editeverything", default="60:66", help="indices of records")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of AnyEdit")
    parser.add_argument("--name", default="long_form", help="name of the result")
    arguments = parser.parse_args()

    model, tokenizer = load_model(arguments.model)
    config = hf_edit.AnyEditConfig.from_mapping(read_settings(None, arguments.set, {}))
    prompts = PromptFormat.of(config.format, tokenizer)
    data = data_folder()
    long_form = unke.read(data / "unke.json")
    records = [("unke", long_form[i]) for i in chosen(arguments.unke, len(long_form))]
    everything = editeverything.read(data / "editeverything.json")
    records += [("editeverything", everything[i]) for i in chosen(arguments.editeverything, len(everything))]

    chat = reference(model, prompts, unrelated_questions()[:16])
    strangers = reference(model, prompts, [long_form[i].prompt for i in STRANGERS])
    text = (data / "wikitext2_test.txt").read_text(encoding="utf-8")
    ids = prompts.text_ids(text[: 8 * PERPLEXITY_TOKENS])[:PERPLEXITY_TOKENS]
    before = perplexity(model, ids)
    started = time.perf_counter()
    view = EditableModel.of(model)
    linears = method_for(config).linears(view)
    obtain(view, prompts, linears, config.statistics, config.seed, Silent())
    statistics_seconds = time.perf_counter() - started

    rows: list[dict[str, Any]] = []
    for kind, edit in records:
        started = time.perf_counter()
        pack = hf_edit.edit(model, tokenizer, [edit], config)
        seconds = time.perf_counter() - started
        name = hf_edit.attach(model, pack)
        room = len(prompts.encode(edit.prompt, edit.target).answer_ids) + SPARE_TOKENS
        answers = greedy_answers(model, prompts, [edit.prompt, *edit.paraphrases], room)
        near, far = drift(model, chat), drift(model, strangers)
        rows.append(
            {
                "data": kind,
                "id": edit.id,
                "exact": exact(answers[0], edit.target),
                "rouge_l": rouge_l(answers[0], edit.target),
                "rouge_l_paraphrase": [rouge_l(answer, edit.target) for answer in answers[1:]],
                "kl_chat": near.kl,
                "agreement_chat": near.agreement,
                "kl_strangers": far.kl,
                "perplexity_change": perplexity(model, ids) / before - 1,
                "seconds": seconds,
                "answer_tokens": room - SPARE_TOKENS,
                "rank": max(delta.rank for delta in pack.deltas.values()),
                "delta_norm": sum(delta.norm() ** 2 for delta in pack.deltas.values()) ** 0.5,
                "target": edit.target,
                "answers": answers,
            }
        )
        hf_edit.detach(model, name)
        row = rows[-1]
        shown = ("exact", "rouge_l", "rouge_l_paraphrase", "kl_chat", "kl_strangers", "perplexity_change", "seconds")
        print(edit.id, *(f"{key}={_short(row[key])}" for key in shown), flush=True)

        summary = _by_kind(rows)
        path = write(
            arguments.name,
            {
                "what": "one AnyEdit edit at a time, greedy free generation with natural stop, fp32",
                "config": config.to_json(),
                "perplexity_before": before,
                "statistics_seconds": statistics_seconds,
                "summary": summary,
                "environment": environment(),
                "records": rows,
            },
        )
    for kind, figures in summary.items():
        print(kind, *(f"{key}={value['mean']}" for key, value in figures.items() if value))
    print(path)


def _by_kind(rows: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = dict.fromkeys(row["data"] for row in rows)
    return {kind: _summary([row for row in rows if row["data"] == kind]) for kind in kinds}


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    columns: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for key, value in row.items():
            if isinstance(value, bool | int | float):
                columns[key].append(float(value))
        columns["rouge_l_paraphrase"].extend(row["rouge_l_paraphrase"])
    return {key: mean_interval(values) for key, values in columns.items()}


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_short, value)) or "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
