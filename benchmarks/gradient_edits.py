"""Short facts by the hundred, and streams of them: EMSEdit, its relatives, and any other method beside them.

    python benchmarks/gradient_edits.py --records 200:300,300:400 --method emsedit --name emsedit_zsre
    python benchmarks/gradient_edits.py --records 0:1000 --batch 20 --curve 5 --name emsedit_stream
    python benchmarks/gradient_edits.py --data counterfact --records 100:200 --set preservation=1
    python benchmarks/gradient_edits.py --data mquake --records 0:100 --method emsedit
    python benchmarks/gradient_edits.py --records 200:300 --ladder --name ladder

Each range of records is taught to the fresh base, at once or in batches of `--batch`, and measured after the last.
A first run also collects statistics, if the method asks for any, and its seconds show it.

- es, gs, ls: teacher-forced, as published: share of answer tokens that are the likeliest after those before them, on
  the edits' prompts, on paraphrases, and on unrelated questions with the data's own answers.
- exact, exact_paraphrase: exact match under greedy decoding with natural stop. Greedy decoding gives an answer and
  stops exactly where all of its tokens and a token that ends the turn are the likeliest in one forward pass over it,
  so nothing is generated.
- new_likelier: P(new) > P(old), the same on paraphrases; neighbour_kept: P(true) > P(new) on neighbours (CounterFact
  and, but for the neighbours, MQuAKE; by the log probability of the whole answer).
- unchanged: share of unrelated questions whose first six greedy tokens are the base's; unchanged_strangers: of
  questions of the same kind about what is not edited.
- kl: KL(base || edited) per token of the base's own answers, nats: to unrelated questions in chat, and to strangers.
- hops: questions that follow from the edits (MQuAKE; zsRE's evaluation file), generated freely with natural stop;
  right where an accepted answer or alias stands in the first sentence. Beside it the unedited base, and the base with
  the fact told in front of the question.
- perplexity on 2,048 tokens of WikiText-2 test.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from common import BASE, data_folder, environment, write
from fact_records import FORMATS, ranges_of, read_facts, strangers
from judging import FIRST, Batch, Bench, Figures, Seen, means, pooled, with_intervals
from teaching import Deltas, teach

from hf_edit.cli.inputs import read_settings
from hf_edit.edits import EditSet
from hf_edit.errors import HfEditWarning
from hf_edit.methods import METHODS
from hf_edit.methods.msbp.config import MultiStepConfig
from hf_edit.models.editable import EditableModel
from hf_edit.models.loading import load_model
from hf_edit.prompting import PromptFormat


STRANGERS = 32
LADDER = [(method, steps) for method in ("mend", "malmen", "rledit", "ultraedit", "emsedit") for steps in (1, 2, 3)]


def main() -> None:
    arguments = parsed()
    data = data_folder()
    facts = read_facts(data, arguments.data, arguments.split)
    ranges = ranges_of(arguments.records, facts)
    name_of_format = arguments.format or FORMATS[arguments.data]
    given = {"format": name_of_format, "hypernet": arguments.hypernet}
    settings = read_settings(None, arguments.set, given)

    model, tokenizer = load_model(arguments.model)
    prompts = PromptFormat.of(name_of_format, tokenizer)
    edited = [fact for some in ranges.values() for fact in some]
    others = strangers(data, arguments.data, arguments.split, edited, STRANGERS)
    bench = Bench.of(EditableModel.of(model), prompts, others)
    batches = {name: bench.batch(some) for name, some in ranges.items()}
    before = pooled([batch.figures_before() for batch in batches.values()])
    shown("before", before)

    result = {
        "what": f"{arguments.data} {arguments.split}, records {arguments.records}, each range on the fresh base",
        "edits": {name: len(some) for name, some in ranges.items()},
        "batch": arguments.batch,
        "strangers": len(others),
        "before": with_intervals(before),
        "environment": environment(),
    }
    rows: list[dict[str, Any]] = []
    for method, steps in LADDER if arguments.ladder else [(arguments.method, None)]:
        config = configured(method, settings, steps, arguments.batch)
        curves: dict[str, list[dict[str, Any]]] = {name: [] for name in ranges}
        found = {
            name: measured(batch, tokenizer, method, config, arguments, curves[name])
            for name, batch in batches.items()
        }
        label = method if steps is None else f"{method} {steps}"
        for name, figures in found.items() if len(found) > 1 else ():
            shown(f"{label} {name}", figures)
        together = pooled(list(found.values()))
        shown(label, together)
        rows.append(
            {
                "method": method,
                "config": config.to_json(),
                "mean": with_intervals(together),
                "each": {name: means(figures) for name, figures in found.items()},
                **({"curves": curves} if arguments.curve else {}),
            }
        )
        path = write(arguments.name, {**result, "rows": rows})  # behind every row: a run that is cut short keeps them
    if arguments.ladder:
        print(table(rows))
    print(path)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--data", default="zsre", choices=sorted(FORMATS))
    parser.add_argument("--split", default="train", choices=("train", "eval"), help="file of zsRE and CounterFact")
    parser.add_argument("--records", default="200:300", help="ranges of indices, each taught to the fresh base")
    parser.add_argument("--method", default="emsedit", choices=METHODS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the method")
    parser.add_argument("--format", choices=("chat", "plain", "qa"), help="default: plain; chat for MQuAKE")
    parser.add_argument("--batch", type=int, help="edits of one batch of a stream; default: all at once")
    parser.add_argument("--curve", type=int, default=0, metavar="K", help="measure behind every K batches too")
    parser.add_argument("--hypernet", help="a trained hypernetwork")
    parser.add_argument("--ladder", action="store_true", help="the five gradient methods at 1, 2 and 3 steps")
    parser.add_argument("--name", default="gradient_edits", help="name of the result")
    return parser.parse_args()


def configured(method: str, settings: Mapping[str, Any], steps: int | None, batch: int | None) -> Any:
    """Settings of a method; those of the gradient methods hold the size of batches."""
    config_class = METHODS[method].config_class
    added = {"steps": steps, "batch": batch} if issubclass(config_class, MultiStepConfig) else {}
    return config_class.from_mapping({**settings, **{name: value for name, value in added.items() if value}})


def measured(
    batch: Batch, tokenizer: Any, method: str, config: Any, arguments: argparse.Namespace, curve: list[dict[str, Any]]
) -> Figures:
    """One range taught to the fresh base; what is seen on the way goes into `curve`."""

    def look(count: int, deltas: Deltas) -> Seen:
        seen = batch.seen(count, deltas)
        if arguments.curve:
            curve.append(seen.point())
            for part in ("so_far", f"first_{FIRST}"):
                shown(f"after {count}, {part}", curve[-1][part])
        return seen

    edits = EditSet(fact.edit for fact in batch.facts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HfEditWarning)  # names the edits that were missed: they are counted here
        taught = teach(batch.bench.view, tokenizer, edits, method, config, arguments.batch, arguments.curve, look)
    return batch.figures(taught, look(len(edits), taught.deltas))


def shown(label: str, figures: Figures) -> None:
    """One line on the terminal."""
    print(f"{label}:", *(f"{name}={value:.4g}" for name, value in means(figures).items()), flush=True)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The ladder as Markdown, in percent where a figure is a share."""
    shares = ("es", "gs", "ls", "exact", "exact_paraphrase", "unchanged", "perplexity_change")
    others = ("kl_strangers", "seconds_per_edit")
    lines = [
        "| method | steps | " + " | ".join((*shares, *others)) + " |",
        "|---|" + "---|" * (len(shares + others) + 1),
    ]
    for row in rows:
        values = {name: one["mean"] if isinstance(one, dict) else one for name, one in row["mean"].items()}
        cells = [f"{100 * values[name]:.1f}" if name in values else "" for name in shares]
        cells += [f"{values[name]:.3f}" for name in others]
        lines.append(f"| {row['method']} | {row['config']['steps']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
