"""What AnyEdit's memit backend costs: against the plain reference of the same algorithm, and many edits in one call.

    python benchmarks/target_speed.py
    python benchmarks/target_speed.py --answers 40 --evaluations 3 --batch 2 --name target_speed_small

For answers of each length, in one run and on the same threads:

- one edit by us and by the reference of the tests (tests/methods/anyedit/reference.py), in turns, from token ids to
  the update: seconds of both, their ratio, and how far targets and update are apart, as shares of their size. The
  reference runs whole forwards with all logits for every evaluation, adds up outer products of every token and inverts
  a dense d_in x d_in matrix; its weights want no gradient. The settings are the same.
- seconds per edit where so many different edits of that length are taught in one call.
- a profile of one edit of ours with few evaluations per chunk, one of which costs as much as any other: the share of
  the processor's or the accelerator's time in matrix products, attention's among them, and what the rest goes to.

Answers are those of UnKE, joined and cut to the length. The second moment is a random one of full rank: what it holds
does not change what a solve costs.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from common import BASE, data_folder, environment, seconds, write
from profiling import profiled
from torch import Tensor, nn

from hf_edit.datasets import unke
from hf_edit.methods.anyedit.chunking import chunks_of
from hf_edit.methods.anyedit.config import AnyEditConfig
from hf_edit.methods.anyedit.method import AnyEdit
from hf_edit.methods.anyedit.targets import Targets, in_lockstep, optimise_targets
from hf_edit.methods.anyedit.update import solver, spread_update
from hf_edit.methods.training.texts import prepared
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.models.loading import load_model
from hf_edit.progress import Silent
from hf_edit.prompting import Encoded, PromptFormat


sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.methods.anyedit.reference import chunk_bounds, reference_targets, reference_updates  # noqa: E402


PROFILED_EVALUATIONS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--dtype", default="float32", help="of the weights, for both")
    parser.add_argument("--answers", default="115,450", help="lengths in tokens")
    parser.add_argument("--evaluations", type=int, default=40, help="most per chunk")
    parser.add_argument("--turns", type=int, default=1, help="of each; 0: the reference is left out")
    parser.add_argument("--batch", type=int, default=16, help="edits taught in one call; 0: none")
    parser.add_argument("--name", default="target_speed", help="name of the result")
    arguments = parser.parse_args()

    config = AnyEditConfig(max_evaluations=arguments.evaluations, at_once=max(1, arguments.batch))
    subject = Subject.loaded(arguments.model, arguments.dtype, config)
    result: dict[str, Any] = {
        "what": "one UnKE edit by the backend memit, from token ids to the update",
        "config": config.to_json(),
        "dtype": arguments.dtype,
        "threads": torch.get_num_threads(),
        "answers": [],
    }
    for length in map(int, arguments.answers.split(",")):
        edits = encoded_answers(subject.prompts, length, max(1, arguments.batch))
        result["answers"].append(measured(subject, edits, arguments.turns, bool(arguments.batch)))
        print(write(arguments.name, result | {"environment": environment()}), flush=True)


def encoded_answers(prompts: PromptFormat, length: int, count: int) -> list[Encoded]:
    """Questions of UnKE, each answered by so many tokens: of its own answer and of those that follow in the file."""
    records = unke.read(data_folder() / "unke.json")
    found = []
    for first in range(count):
        own = prompts.encode(records[first].prompt, records[first].target)
        texts = (prompts.encode(record.prompt, record.target) for record in records[first:])
        tokens = list(islice(chain.from_iterable(text.answer_ids[:-1] for text in texts), length - 1))
        found.append(Encoded((*own.prompt_ids, *tokens, own.ids[-1]), own.answer_start))
    return found


@dataclass(frozen=True, eq=False)
class Subject:
    """What is edited, and how."""

    view: EditableModel
    prompts: PromptFormat
    linear: EditableLinear
    moment: Tensor
    config: AnyEditConfig

    @classmethod
    def loaded(cls, path: str, dtype: str, config: AnyEditConfig) -> Subject:
        model, tokenizer = load_model(path, dtype=dtype)
        view = EditableModel.of(model)
        (linear,) = AnyEdit(config).linears(view)
        Z = torch.randn(2 * linear.d_in, linear.d_in, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        moment = (Z.T @ Z / len(Z)).to(view.device)
        return cls(view, PromptFormat.of(config.format, tokenizer), linear, moment, config)


# ---- what is compared ------------------------------------------------------------------------------------------


def measured(subject: Subject, edits: Sequence[Encoded], turns: int, batch: bool) -> dict[str, Any]:
    """Answers of one length: one edit by both, and all of them at once by us."""
    length = len(edits[0].answer_ids)
    found: dict[str, Any] = {"answer_tokens": length, "prompt_tokens": edits[0].answer_start}
    taught(replace_evaluations(subject, 1), edits[:1])  # what is built once
    found |= against_plain(subject, edits[0], max(1, turns), plain=turns > 0)
    print(length, {name: value for name, value in found.items() if name != "profile"}, flush=True)
    if batch:
        together: list[Taught] = []
        taken = seconds(lambda: together.append(taught(subject, edits)))
        found["batch"] = {
            "edits": len(edits),
            "seconds_per_edit": taken / len(edits),
            "times_faster_than_one": found["seconds"]["ours"] / (taken / len(edits)),
            "evaluations": [int(targets.evaluations.sum()) for targets in together[0].targets],
        }
        print(length, found["batch"], flush=True)
    few = replace_evaluations(subject, PROFILED_EVALUATIONS)
    found["profile"] = profiled(lambda: taught(few, edits[:1]), subject.view.device)
    print(length, "in matrix products:", round(found["profile"]["in_matrix_products"], 3), flush=True)
    return found


def replace_evaluations(subject: Subject, most: int) -> Subject:
    config = replace(subject.config, max_evaluations=min(most, subject.config.max_evaluations))
    return replace(subject, config=config)


def against_plain(subject: Subject, edit: Encoded, turns: int, plain: bool) -> dict[str, Any]:
    """Seconds of both in turns, each the median, and how far their results are apart."""
    times: dict[str, list[float]] = {"ours": []} | ({"plain": []} if plain else {})
    ours: list[Taught] = []
    reference = Reference.of(subject) if plain else None
    theirs: list[tuple[dict[int, Tensor], Tensor]] = []
    for _ in range(turns):
        times["ours"].append(seconds(lambda: ours.append(taught(subject, [edit]))))
        if reference is not None:
            times["plain"].append(seconds(lambda: theirs.append(reference.taught(edit))))
            reference.restore()
    (targets,) = ours[0].targets
    found: dict[str, Any] = {
        "chunks": len(targets.positions),
        "evaluations": int(targets.evaluations.sum()),
        "seconds": {name: statistics.median(each) for name, each in times.items()},
    }
    if theirs:
        changes, update = theirs[0]
        assert targets.positions.tolist() == list(changes)
        apart = [difference(delta, change) for delta, change in zip(targets.deltas, changes.values(), strict=True)]
        found["ratio"] = found["seconds"]["plain"] / found["seconds"]["ours"]
        found["targets_apart"] = max(apart)
        found["update_apart"] = difference(ours[0].update, update)
    return found


def difference(one: Tensor, other: Tensor) -> float:
    """|one - other| / |other|"""
    one, other = one.cpu().double(), other.cpu().double()
    return float((one - other).norm() / other.norm())


@dataclass(frozen=True, eq=False)
class Taught:
    targets: list[Targets]
    update: Tensor


def taught(subject: Subject, edits: Sequence[Encoded]) -> Taught:
    """Both stages by the project's engine, as `AnyEdit.compute` runs them; the update is made dense."""
    view, linear, config = subject.view, subject.linear, subject.config
    with borrowed(view.model):
        chunks = [chunks_of(view, subject.prompts, edit, config) for edit in edits]
        texts = prepared(view, edits, linear.layer)
        targets: list[Targets] = []
        for part in in_lockstep(view, linear, texts):
            rows = slice(part.start, part.stop)
            targets += optimise_targets(view, linear, texts[rows], chunks[rows], config, len(edits), Silent())
        solve = solver(config, lambda _: subject.moment)
        weights = config.own_weight, config.earlier_weight
        deltas, _ = spread_update(view, [linear], edits, targets, [], solve, *weights)
        return Taught(targets, deltas[linear.name].dense())


@dataclass(frozen=True, eq=False)
class Reference:
    """A model of its own, which the plain reference changes."""

    subject: Subject
    model: Any
    block: nn.Module
    linear: Any
    weight: Tensor

    @classmethod
    def of(cls, subject: Subject) -> Reference:
        view = subject.view
        model: Any = copy.deepcopy(view.model).requires_grad_(False)
        linear: Any = model.get_submodule(subject.linear.name)
        block = model.get_submodule(f"{view.family.blocks}.{subject.linear.layer}")
        return cls(subject, model, block, linear, linear.weight.detach().clone())

    def taught(self, edit: Encoded) -> tuple[dict[int, Tensor], Tensor]:
        """Both stages: key position -> change, and the update."""
        subject, config = self.subject, self.subject.config
        behind_norm = not subject.view.writes_residual
        with torch.device(subject.view.device):
            bounds = chunk_bounds(self.model, subject.prompts, edit, config)
            changes = reference_targets(
                self.model, self.block, self.linear, edit, bounds, config, behind_norm, n_edits=1
            )
            (update,) = reference_updates(
                self.model,
                [self.block],
                [self.linear],
                [edit],
                [changes],
                [subject.moment],
                [],
                config,
                behind_norm,
            )
        return changes, update

    def restore(self) -> None:
        self.linear.weight.data.copy_(self.weight)


if __name__ == "__main__":
    main()
