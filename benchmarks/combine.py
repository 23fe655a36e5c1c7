"""Packs combined and taken apart: long-form edits in packs of `--size`, stacked, summed, polished, reverted.

The parts are computed once and kept in `--parts`. Reported: exact match by free generation of the edits that worked
alone, ROUGE-L of their paraphrases, KL on unrelated chat questions and on strangers, perplexity, seconds; with
`--orders` the relative difference of B A between orders and groupings; and, for reverted edits, whether the base's own
text comes back.

    python benchmarks/combine.py --unke 0:16 --size 8 --orders --name stack_2x8
    python benchmarks/combine.py --unke 0:16 --size 1 --revert 1,8 --name stack_16x1
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common import BASE, RESULTS, chosen, data_folder, environment, shown, write
from long_answers import LongAnswers

import hf_edit
from hf_edit.cli.inputs import read_settings
from hf_edit.compose.config import CombineConfig
from hf_edit.datasets import unke
from hf_edit.edits import Edit, EditSet
from hf_edit.evaluation.scores import exact, rouge_l
from hf_edit.models.loading import load_model
from hf_edit.packs.pack import EditPack
from hf_edit.prompting import PromptFormat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--unke", default="0:16", help="indices of records")
    parser.add_argument("--size", type=int, default=8, help="edits in one part")
    parser.add_argument("--parts", type=Path, default=RESULTS / "parts", help="folder where computed parts are kept")
    parser.add_argument("--revert", default="", help="how many edits to take back, as 1,8")
    parser.add_argument("--polish", action="store_true", help="polish the stacked pack too")
    parser.add_argument("--orders", action="store_true", help="stack in other orders and groupings too")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the solve")
    parser.add_argument("--name", default="combine", help="name of the result")
    arguments = parser.parse_args()

    model, tokenizer = load_model(arguments.model)
    bench = Bench.of(model, tokenizer, PromptFormat.of(None, tokenizer))
    config = CombineConfig.from_mapping(read_settings(None, arguments.set, {}))
    records = unke.read(data_folder() / "unke.json")
    indices = chosen(arguments.unke, len(records))
    parts, rows = [], []
    for begin in range(0, len(indices), arguments.size):
        group = indices[begin : begin + arguments.size]
        parts.append(bench.part(arguments.parts, [records[i] for i in group], group))
    every = [edit for part in parts for edit in part.edits]

    def show(label: str, make: Callable[[], EditPack], asked: Sequence[Edit] = every) -> EditPack:
        started = time.perf_counter()
        pack = make()
        seconds = time.perf_counter() - started
        rows.append({"what": label, "seconds": seconds, **bench.measured(pack, asked, alone)})
        print(shown(rows[-1]), flush=True)
        return pack

    alone = {edit.id: right for part in parts for edit, right in bench.answered(part, part.edits)}
    print(f"alone: {sum(alone.values())} of {len(alone)} exact", flush=True)
    how: dict[str, Any] = {"model": model, "tokenizer": tokenizer}
    show("sum", lambda: hf_edit.stack(parts, mode="add", **how))
    stacked = show("stacked", lambda: hf_edit.stack(parts, config=config, **how))
    orders = bench.orders(parts, stacked, config) if arguments.orders else None
    if orders:
        print(f"orders and groupings: {orders}", flush=True)
    reverted = []
    for count in [int(number) for number in filter(None, arguments.revert.split(","))]:
        gone = random.Random(0).sample(every, count)
        kept = [edit for edit in every if edit not in gone]
        reverting = partial(stacked.revert, [edit.id for edit in gone], config=config, **how)
        less = show(f"without {count}", reverting, kept)
        reverted.append({"count": count, "own_text": bench.own_text(less, gone)})
        if arguments.polish:
            own = bench.own_answers(gone)
            polishing = partial(hf_edit.polish, less, earlier=[own], **how)
            polished = show(f"without {count}, polished", polishing, kept)
            reverted[-1]["own_text_polished"] = bench.own_text(polished, gone)
        back = hf_edit.stack([less, *parts], config=config, **how)
        reverted[-1]["stacked_again"] = difference(stacked, back)
        print(reverted[-1], flush=True)
    if arguments.polish:
        show("polished", lambda: hf_edit.polish(stacked, **how))
    path = write(
        arguments.name,
        {
            "what": f"{len(parts)} packs of {arguments.size} long-form edits combined",
            "config": config.to_json(),
            "rows": rows,
            "orders": orders,
            "reverted": reverted,
            "environment": environment(),
        },
    )
    print(path)


class Bench(LongAnswers):
    """What is measured of packs of some edits of the base."""

    def part(self, folder: Path, records: Sequence[Edit], indices: Sequence[int]) -> EditPack:
        """The pack of some records, computed by what `edit()` does without settings."""
        path = folder / f"unke_{'_'.join(map(str, indices))}"
        if not path.is_dir():
            started = time.perf_counter()
            hf_edit.edit(self.model, self.tokenizer, EditSet(records)).save_pretrained(path)
            print(f"{path.name}: {time.perf_counter() - started:.0f} s", flush=True)
        return EditPack.from_pretrained(path)

    def answered(self, pack: EditPack, edits: Sequence[Edit]) -> list[tuple[Edit, bool]]:
        """Which edits get their answer word for word."""
        said = self._said(pack, [edit.prompt for edit in edits], edits, [edit.target for edit in edits])
        return [(edit, exact(answer, edit.target)) for edit, answer in zip(edits, said, strict=True)]

    def own_text(self, pack: EditPack, edits: Sequence[Edit]) -> float:
        """Share of questions that get the base's own text."""
        questions = [edit.prompt for edit in edits]
        base = self._said(None, questions, edits)
        said = self._said(pack, questions, edits, base)
        return sum(a == b for a, b in zip(base, said, strict=True)) / len(edits)

    def own_answers(self, edits: Sequence[Edit]) -> EditSet:
        """The edits' questions with the base's own text."""
        said = self._said(None, [edit.prompt for edit in edits], edits)
        return EditSet(Edit(edit.prompt, text, id=edit.id) for edit, text in zip(edits, said, strict=True))

    def measured(self, pack: EditPack, edits: Sequence[Edit], alone: dict[str, bool]) -> dict[str, Any]:
        """Everything reported of one pack."""
        right = dict(zip((e.id for e in edits), (ok for _, ok in self.answered(pack, edits)), strict=True))
        worked = [right[edit.id] for edit in edits if alone[edit.id]]
        asked = [(prompt, edit) for edit in edits for prompt in edit.paraphrases]
        reworded = self._said(pack, [prompt for prompt, _ in asked], edits, [edit.target for _, edit in asked])
        scores = [rouge_l(answer, edit.target) for answer, (_, edit) in zip(reworded, asked, strict=True)]
        name = hf_edit.attach(self.model, pack)
        found = {
            "exact": sum(right.values()) / len(right),
            "kept": sum(worked) / len(worked),
            "paraphrase": sum(scores) / len(scores),
            **self.elsewhere(),
            "rank": max(delta.rank for delta in pack.deltas.values()),
        }
        hf_edit.detach(self.model, name)
        return found

    def orders(self, parts: Sequence[EditPack], stacked: EditPack, config: CombineConfig) -> dict[str, float]:
        """Relative difference of B A of other orders and groupings to the stacked pack."""
        how: dict[str, Any] = {"model": self.model, "tokenizer": self.tokenizer, "config": config}
        half = len(parts) // 2
        shuffled = random.Random(0).sample(list(parts), len(parts))
        return {
            "reversed": difference(stacked, hf_edit.stack(parts[::-1], **how)),
            "shuffled": difference(stacked, hf_edit.stack(shuffled, **how)),
            "halves": difference(
                stacked,
                hf_edit.stack([hf_edit.stack(parts[half:], **how), hf_edit.stack(parts[:half], **how)], **how),
            ),
        }

    def _said(
        self, pack: EditPack | None, prompts: Sequence[Any], edits: Sequence[Edit], drafts: Sequence[str] | None = None
    ) -> list[str]:
        name = None if pack is None else hf_edit.attach(self.model, pack)
        try:
            return self.said(prompts, edits, drafts)
        finally:
            if name is not None:
                hf_edit.detach(self.model, name)


def difference(one: EditPack, other: EditPack) -> float:
    """Of the products B A, relative to their norm, over all modules."""
    apart = sum(float((one.deltas[n].dense() - other.deltas[n].dense()).double().square().sum()) for n in one.deltas)
    return float((apart / sum(delta.norm() ** 2 for delta in one.deltas.values())) ** 0.5)


if __name__ == "__main__":
    main()
