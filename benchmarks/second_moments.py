"""What the second moment of an edit is best taken over, and what storing it in less space costs.

    python benchmarks/second_moments.py --text wikitext2_train.txt
    python benchmarks/second_moments.py --text wikitext2_train.txt --counterfact 200:300 --compress 32,128,0.95

CounterFact records are taught with `memit`, one edit at a time, against each of these:

- `text`: plain text of the given file alone, as published; `text+questions`: with the base's own questions, answered;
- `self`: what hf_edit collects without any data, and `self text`, its plain text alone;
- `identity`: the identity, of the size of `self`;
- `self R`: `self`, compressed to this rank, or to the rank that holds this share of the trace.

All have the same number of tokens, and a record has the same target against each, so nothing but the moment differs.
Efficacy is the share of edits whose new answer is likelier than the old one, or is given word for word; locality, what
becomes of the neighbours' own answers, of chat (KL) and of running text (perplexity).
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from common import BASE, chosen, data_folder, environment, mean_interval, perplexity_ids, unrelated_questions, write
from fact_records import Fact, read_facts
from torch import Tensor

from hf_edit.cli.inputs import read_settings
from hf_edit.edits import Edit, EditSet
from hf_edit.evaluation.drift import Reference, drift, perplexity, reference
from hf_edit.evaluation.edit_scores import edit_scores
from hf_edit.methods.memit.config import MemitConfig
from hf_edit.methods.memit.method import Memit
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.models.loading import load_model
from hf_edit.progress import Silent
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.statistics.collect import collect
from hf_edit.statistics.compression import Compressed, Compression
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.corpus import Corpus, write_corpus
from hf_edit.statistics.moments import SecondMoments


CHAT_QUESTIONS, CHAT_TOKENS = 8, 16
PERPLEXITY_TOKENS = 1024
SHOWN = ("new_likelier", "exact", "new_likelier_paraphrase", "neighbour_kept", "kl_chat", "perplexity_change")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--text", type=Path, help="a text file such as WikiText's; none: only what needs none")
    parser.add_argument("--counterfact", default="200:300", help="indices of records of the training file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the statistics")
    parser.add_argument("--compress", default="32,128,512,0.9,0.99", help="ranks and shares of the trace")
    parser.add_argument("--name", default="second_moments", help="name of the result")
    arguments = parser.parse_args()

    model, tokenizer = load_model(arguments.model)
    view, prompts, data = EditableModel.of(model), PromptFormat.of("plain", tokenizer), data_folder()
    every = read_facts(data, "counterfact", "train")
    facts = [every[i] for i in chosen(arguments.counterfact, len(every))]
    ids = perplexity_ids(prompts, PERPLEXITY_TOKENS)
    bench = Bench(view, prompts, Memit(MemitConfig(format="plain")), ids)

    result: dict[str, Any] = {"what": f"{len(facts)} CounterFact facts, each alone, memit", "against": {}}
    result["base"] = {name: mean_interval(values) for name, values in bench.scores(facts).items()}
    config = StatisticsConfig.from_mapping(read_settings(None, arguments.set, {}))
    for against in variants(bench, config, arguments.text, list(filter(None, arguments.compress.split(",")))):
        figures = {name: mean_interval(values) for name, values in bench.figures(facts, against.moments).items()}
        result["against"][against.name] = {"figures": figures, **against.notes}
        shown = "  ".join(f"{name} {figures[name]['mean']:.3f}" for name in SHOWN)
        print(f"{against.name:16} {shown}", *(f"{name} {value}" for name, value in against.notes.items()), flush=True)
    print(write(arguments.name, result | {"environment": environment()}))


@dataclass(frozen=True)
class Against:
    """A second moment to solve against, and what there is to say of it."""

    name: str
    moments: SecondMoments
    notes: dict[str, Any]


class Bench:
    """The base, what it said, and the targets of the facts, which do not depend on the moments."""

    def __init__(self, view: EditableModel, prompts: PromptFormat, method: Memit, ids: Sequence[int]) -> None:
        self.view, self.prompts, self.method, self.ids = view, prompts, method, ids
        self.linears = method.linears(view)
        chat = PromptFormat.of(None, prompts.tokenizer)
        self.chat: Reference = reference(view.model, chat, unrelated_questions()[:CHAT_QUESTIONS], CHAT_TOKENS)
        self.perplexity = perplexity(view.model, ids)
        self.targets = Kept()

    def figures(self, facts: Sequence[Fact], moments: SecondMoments) -> dict[str, list[float]]:
        """Of each fact alone, against these moments."""
        found: dict[str, list[float]] = defaultdict(list)
        for fact in facts:
            edits = EditSet([fact.edit])
            with borrowed(self.view.model):
                made = self.method.compute(self.view, self.prompts, edits, Given(moments), self.targets, Silent())
            with self.view.updated(made.deltas):
                for name, values in self.scores([fact]).items():
                    found[name] += values
                found["kl_chat"].append(drift(self.view.model, self.chat).kl)
                found["perplexity_change"].append(perplexity(self.view.model, self.ids) / self.perplexity - 1)
        return found

    def scores(self, facts: Sequence[Fact]) -> dict[str, list[float]]:
        """Of the model as it stands."""
        scores = edit_scores(self.view.model, self.prompts, [f.edit for f in facts], [str(f.old) for f in facts])
        return {name: [float(getattr(score, name) or 0) for score in scores] for name in SHOWN[:4]}


class Kept(dict[str, Mapping[str, Tensor]]):
    """Checkpoints in memory."""

    def load(self, key: str) -> dict[str, Tensor] | None:
        return dict(self[key]) if key in self else None

    def save(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        self[key] = dict(tensors)


@dataclass(frozen=True)
class Given:
    """These moments, and nothing else to preserve."""

    statistics: SecondMoments
    earlier: Sequence[Encoded] = field(default=())

    def moments(self, linears: Sequence[EditableLinear]) -> SecondMoments:
        return self.statistics

    def conversations(self) -> Sequence[Encoded]:
        return ()

    def strangers(self, edits: Sequence[Edit], count: int) -> Sequence[Encoded]:
        return ()


def variants(bench: Bench, config: StatisticsConfig, text: Path | None, compress: Sequence[str]) -> list[Against]:
    """What is compared."""

    def timed(make: Callable[[], Any]) -> tuple[Any, float]:
        started = time.perf_counter()
        made = make()
        return made, time.perf_counter() - started

    def written(settings: StatisticsConfig) -> tuple[Corpus, float]:
        return timed(lambda: write_corpus(bench.view, bench.prompts, settings, 0, Silent()))

    def over(name: str, corpus: Corpus, seconds: float) -> Against:
        moments, more = timed(lambda: collect(bench.view, corpus, bench.linears, config.batch, Silent()))
        return Against(name, moments, {"seconds": round(seconds + more, 1), "tokens": dict(moments.tokens)})

    own, seconds = written(config)
    mine = over("self", own, seconds)
    found = [mine, over("self text", replace(own, conversations=()), seconds)]
    found.append(Against("identity", identity(mine.moments), {}))
    if text is not None:
        given, seconds = written(replace(config, text=str(text), tokens=own.text.numel(), conversations=0))
        found.append(over("text", given, seconds))
        found.append(over("text+questions", replace(given, conversations=own.conversations), seconds))
    return found + [smaller(mine.moments, how) for how in compress]


def identity(moments: SecondMoments) -> SecondMoments:
    """The identity, times the mean eigenvalue of each part."""
    matrices = {
        part: {name: matrix.diagonal().mean() * torch.eye(len(matrix)) for name, matrix in names.items()}
        for part, names in moments.matrices.items()
    }
    return replace(moments, matrices=matrices)


def smaller(moments: SecondMoments, how: str) -> Against:
    """The moments as they are stored with `--compress`."""
    compression = Compression.parsed(how)
    forms = {
        part: {name: Compressed.of(matrix, compression) for name, matrix in names.items()}
        for part, names in moments.matrices.items()
    }
    pairs = [(moments.matrices[part][name], form) for part, names in forms.items() for name, form in names.items()]
    notes = {
        "rank": round(fmean(form.factor.shape[1] for _, form in pairs), 1),
        "share_of_bytes": round(
            sum(form.factor.nbytes + form.diagonal.nbytes for _, form in pairs) / sum(m.nbytes for m, _ in pairs), 4
        ),
        "largest_error": round(max(form.error(matrix) for matrix, form in pairs), 4),
    }
    dense = {part: {name: form.dense() for name, form in names.items()} for part, names in forms.items()}
    return Against(f"self {how}", replace(moments, matrices=dense), notes)


if __name__ == "__main__":
    main()
