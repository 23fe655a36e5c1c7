"""Many short facts in one pack: CounterFact (continued statements) and zsRE (questions), by several methods.

    python benchmarks/short_facts.py --method memit --counterfact 100:200 --zsre "" --name memit_counterfact
    python benchmarks/short_facts.py --method polish --counterfact "" --zsre 100:200 --name polish_zsre

CounterFact is asked in the format plain, as statements are; zsRE in the model's chat format. Reported, before and
after: efficacy (share of edits whose new answer is likelier than the old one, by the log probability of the whole
answer; zsRE has no old answer there, so the share that greedy decoding gives token for token), the same on
paraphrases, neighbourhood success (the neighbour's own answer is likelier than the new one), exact match by free
generation with natural stop, unchanged answers to unrelated questions, perplexity.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from common import BASE, chosen, data_folder, environment, mean_interval, perplexity_ids, write

import hf_edit
from hf_edit.cli.inputs import read_settings
from hf_edit.datasets import counterfact, zsre
from hf_edit.edits import EditSet
from hf_edit.evaluation.answers import greedy_answers
from hf_edit.evaluation.drift import perplexity
from hf_edit.evaluation.edit_scores import edit_scores
from hf_edit.evaluation.scores import exact
from hf_edit.methods import METHODS
from hf_edit.models.loading import load_model
from hf_edit.prompting import PromptFormat


PERPLEXITY_TOKENS = 4096
NEW_TOKENS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--method", default="memit", choices=METHODS)
    parser.add_argument("--counterfact", default="100:200", help="indices of records of the training file")
    parser.add_argument("--zsre", default="", help="indices of records of the training file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the method")
    parser.add_argument("--name", default="short_facts", help="name of the result")
    arguments = parser.parse_args()

    model, tokenizer = load_model(arguments.model)
    data, kind = data_folder(), "counterfact" if arguments.counterfact else "zsre"
    read, spec = {"counterfact": (counterfact.read, arguments.counterfact), "zsre": (zsre.read, arguments.zsre)}[kind]
    records = read(data / f"{kind}_train.json")
    edits = EditSet(records[i] for i in chosen(spec, len(records)))
    settings = read_settings(None, arguments.set, {"format": "plain" if kind == "counterfact" else None})
    config: Any = METHODS[arguments.method].config_class.from_mapping(settings)
    prompts = PromptFormat.of(config.format, tokenizer)
    ids = perplexity_ids(prompts, PERPLEXITY_TOKENS)

    before = figures(model, prompts, edits, kind, ids)
    started = time.perf_counter()
    pack = hf_edit.edit(model, tokenizer, edits, config)
    seconds = (time.perf_counter() - started) / len(edits)
    hf_edit.attach(model, pack)
    after = figures(model, prompts, edits, kind, ids)
    after["unrelated_unchanged"] = mean_interval(
        [float(a == b) for a, b in zip(before.pop("said"), after.pop("said"), strict=True)]
    )
    result = {
        "what": f"{len(edits)} {kind} facts in one pack",
        "method": arguments.method,
        "config": config.to_json(),
        "before": before,
        "after": after,
        "perplexity_change": after["perplexity"] / before["perplexity"] - 1,
        "seconds_per_edit": seconds,
        "rank": max(delta.rank for delta in pack.deltas.values()),
        "environment": environment(),
    }
    path = write(arguments.name, result)
    for when in ("before", "after"):
        print(when, *(f"{k}={v['mean'] if isinstance(v, dict) else round(v, 3)}" for k, v in result[when].items()))
    print(f"perplexity {result['perplexity_change']:+.1%}, {seconds:.2f} s per edit, rank {result['rank']}", path)


def figures(model: Any, prompts: PromptFormat, edits: EditSet, kind: str, ids: Sequence[int]) -> dict[str, Any]:
    """Everything measured of one model."""
    asked, reworded = [edit.prompt for edit in edits], [edit.paraphrases[0] for edit in edits]
    near = [edit.locality[0] for edit in edits]
    old = [probe.answer or "" for probe in near]
    found: dict[str, Any] = {}
    if kind == "counterfact":
        scores = edit_scores(model, prompts, edits, old)
        found["efficacy"] = mean_interval([float(score.new_likelier or 0) for score in scores])
        found["paraphrase_success"] = mean_interval([float(score.new_likelier_paraphrase or 0) for score in scores])
        found["neighbourhood_success"] = mean_interval([float(score.neighbour_kept or 0) for score in scores])
    answers = greedy_answers(model, prompts, [*asked, *reworded], NEW_TOKENS, batch=32)
    rows = (("exact", answers[: len(edits)]), ("exact_paraphrase", answers[len(edits) :]))
    for name, said in rows:
        found[name] = mean_interval([float(exact(a, e.target)) for a, e in zip(said, edits, strict=True)])
    found["said"] = greedy_answers(model, prompts, [probe.prompt for probe in near], NEW_TOKENS, batch=32)
    found["perplexity"] = perplexity(model, ids)
    return found


if __name__ == "__main__":
    main()
