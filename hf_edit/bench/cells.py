"""One cell of a bench: a method on a data set, so many edits together, with a seed."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_edit._version import __version__
from hf_edit.api import edit
from hf_edit.batching import batched
from hf_edit.bench.baselines import BASELINES
from hf_edit.bench.config import BenchConfig, Data, Method
from hf_edit.bench.costs import Clock, hardware, pack_facts, watched
from hf_edit.bench.named import contents
from hf_edit.bench.pooling import pooled
from hf_edit.bench.questions import Questions
from hf_edit.edits import EditSet
from hf_edit.errors import ConfigError, HfEditWarning, PackError
from hf_edit.evaluation.config import EvaluateConfig
from hf_edit.evaluation.evaluators import EVALUATORS, chosen
from hf_edit.evaluation.recall import Recall
from hf_edit.evaluation.run import evaluate
from hf_edit.evaluation.subject import Task
from hf_edit.files import strict_json
from hf_edit.files.atomic import check_replaceable, replacing
from hf_edit.models.editable import EditableModel
from hf_edit.models.fingerprint import running_fingerprint
from hf_edit.packs.contents import MANIFEST, is_pack_file
from hf_edit.packs.evaluation import Evaluation
from hf_edit.packs.pack import EditPack
from hf_edit.progress import Progress, Silent
from hf_edit.prompting import PromptFormat


FORMAT_VERSION = 2


@dataclass(frozen=True)
class Cell:
    """What is computed and measured at a time.

    Args:
        together: how many edits a pack teaches; None of a baseline, which has no packs.
    """

    method: Method
    data: Data
    together: int | None
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        size = [] if self.together is None else [f"by-{self.together}", f"seed-{self.seed}"]
        return "--".join([self.data.name, self.method.label, *size])


def cells_of(config: BenchConfig, sizes: Mapping[str, int]) -> list[Cell]:
    """Every cell, in the order in which they run: baselines of a data set first.

    Args:
        sizes: data set -> how many edits it has. More than these together are the same as all of them.
    """
    cells = []
    for data in config.data:
        count = sizes[data.name]
        together = list(dict.fromkeys(min(size, count) for size in data.together or (count,)))
        for method in sorted(config.methods, key=lambda method: not method.is_baseline):
            if method.is_baseline:
                cells.append(Cell(method, data, None, config.seeds[0]))
            else:
                cells += [Cell(method, data, size, seed) for size in together for seed in config.seeds]
    return cells


class Stopped(ConfigError):
    """What goes wrong in a cell and would in all others too: it ends the bench, which can be resumed."""


@dataclass(frozen=True)
class Bench:
    """What all cells share.

    Args:
        folder: where finished cells are kept.
        keep_packs: keep the packs as well, with their figures and cards.
        recall: what the base said, for all cells: most of what packs are compared with is asked alike.
        processes: how many share the cells.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: BenchConfig
    questions: Mapping[str, Questions]
    folder: Path
    keep_packs: bool
    recall: Recall
    processes: int

    def check(self, cells: Sequence[Cell]) -> None:
        """Find out what cannot be measured before hours of measuring, not after.

        Raises:
            ConfigError: the folder holds cells of another bench, or an evaluator has nothing to ask.
            PackError: a pack that is to be kept has no place.
            InvalidEditError: an edit is longer than the model's context.
        """
        view = EditableModel.of(self.model)
        for data in self.config.data:
            settings, edits = self.config.evaluation(data, self.config.seeds[0]), self.questions[data.name].edits
            task = self._task(data, edits, settings)
            task.prompts.check(edits, view.max_length)
            chosen(settings.evaluators, task, edited=True)
        for cell in cells:
            key = self._key(cell)
            for path in (self._path(cell), *sorted(self._unfinished(cell).glob("*.json"))):
                self._read(path, key)
            for number in range(self._count(cell) if self.keep_packs else 0):
                check_replaceable(self._pack(cell, number), MANIFEST, is_pack_file)
        unkept = [cell.name for cell in cells if self.keep_packs and self._is_unkept(cell)]
        if unkept:
            warnings.warn(
                f"Packs of an earlier run that did not keep them are not computed again: {', '.join(unkept)}. Delete "
                f"these cells in {self.folder / 'cells'} to have their packs kept.",
                HfEditWarning,
                stacklevel=2,
            )

    def measured(self, cell: Cell, progress: Progress) -> dict[str, Any]:
        """The cell's record, computed or, where an earlier run has finished it, read.

        Raises:
            Stopped: the folder cannot be written, or holds cells of another bench.
            HfEditError: the method cannot teach these edits.
        """
        path, key = self._path(cell), self._key(cell)
        record = self._read(path, key)
        if record is None:
            parts = list(self._parts(cell, key, progress))
            evaluations = [Evaluation.from_json(part["evaluation"], cell.name) for part in parts]
            evaluation = pooled(evaluations, self.questions[cell.data.name].edits, cell.seed)
            evaluation.check(cell.name)  # before it is kept: a finished cell is not looked at again
            record = {
                "format_version": FORMAT_VERSION,
                "key": key,
                "evaluation": evaluation.to_json(),
                "packs": [part["pack"] for part in parts if part["pack"] is not None],
                "seconds": [part["seconds"] for part in parts],
                "peak_memory": _peaks([part["peak_memory"] for part in parts]),
                "hardware": {**hardware(), "processes": self.processes},
            }
            record = kept(path, record)
            shutil.rmtree(self._unfinished(cell), ignore_errors=True)
        return record

    def _parts(self, cell: Cell, key: str, progress: Progress) -> Iterator[dict[str, Any]]:
        """One record for each pack, or one for all edits of a baseline; those of a killed run are read."""
        edits = self.questions[cell.data.name].edits
        groups = [edits] if cell.together is None else [EditSet(group) for group in batched(edits, cell.together)]
        if len(groups) > 1:
            progress.stage(cell.name, len(groups))
        for number, group in enumerate(groups):
            path = self._unfinished(cell) / f"{_numbered(number)}.json"
            part = self._read(path, key)
            if part is None:
                inner = Silent() if len(groups) > 1 else Named(progress, cell.name)
                part = kept(path, {"key": key, **self._part(cell, group, number, inner)})
            if len(groups) > 1:
                progress.step()
            yield part

    def _part(self, cell: Cell, edits: EditSet, number: int, progress: Progress) -> dict[str, Any]:
        evaluation = self._evaluation(cell)
        view, questions = EditableModel.of(self.model), self.questions[cell.data.name]
        resumed = any(self._resumed(cell, number).glob("*"))
        with watched(view.device) as peak:
            clock = Clock(progress)
            pack = None if cell.method.is_baseline else self._computed(cell, edits, number, clock)
            seconds = clock.stop()
        found = self._evaluated(cell, pack, edits, evaluation, questions, progress)
        if pack is not None and self.keep_packs:
            self._save(pack.with_evaluation(found), self._pack(cell, number))
        return {
            "evaluation": found.to_json(),
            "pack": None if pack is None else pack_facts(pack, view),
            "seconds": {} if pack is None or resumed else seconds,  # a resumed run's are those of the rest
            "peak_memory": peak.found,
        }

    def _save(self, pack: EditPack, folder: Path) -> None:
        try:
            pack.save_pretrained(folder)
        except PackError as error:
            raise Stopped(error.message, error.remedy) from error

    def _computed(self, cell: Cell, edits: EditSet, number: int, progress: Progress) -> EditPack:
        config = cell.method.config(cell.data.format, cell.seed)
        resume = self._resumed(cell, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HfEditWarning)  # of edits that were missed, which are counted here
            return edit(self.model, self.tokenizer, edits, config, progress=progress, resume_dir=resume)

    def _evaluated(
        self,
        cell: Cell,
        pack: EditPack | None,
        edits: EditSet,
        config: EvaluateConfig,
        questions: Questions,
        progress: Progress,
    ) -> Evaluation:
        told = BASELINES.get(cell.method.method)
        if config.evaluators is not None:
            task = self._task(cell.data, edits, config)
            edited = pack is not None or told is not None
            config = replace(config, evaluators=tuple(_asking(config.evaluators, task, edited)))
        return evaluate(
            self.model,
            self.tokenizer,
            pack,
            edits,
            config,
            material=questions.material,
            context=None if told is None else told(questions),
            recall=self.recall,
            progress=progress,
        )

    def _evaluation(self, cell: Cell) -> EvaluateConfig:
        """How a cell is evaluated: where answers are cut off is one for all packs and baselines on the same data."""
        config = self.config.evaluation(cell.data, cell.seed)
        edits = self.questions[cell.data.name].edits
        return replace(config, max_new_tokens=self._task(cell.data, edits, config).max_new_tokens)

    def _task(self, data: Data, edits: EditSet, config: EvaluateConfig) -> Task:
        prompts = PromptFormat.of(data.format, self.tokenizer)
        return Task.of(edits, self.questions[data.name].material, config, prompts)

    def _path(self, cell: Cell) -> Path:
        return cell_file(self.folder, cell.name)

    def _unfinished(self, cell: Cell) -> Path:
        return self.folder / "cells" / f".{cell.name}.unfinished"

    def _resumed(self, cell: Cell, number: int) -> Path:
        """Where a pack's intermediate results are."""
        return self._unfinished(cell) / f"{_numbered(number)}.resume"

    def _pack(self, cell: Cell, number: int) -> Path:
        """Where a pack is kept: in a folder of its own where the cell has several."""
        folder = self.folder / "packs" / cell.name
        return folder if self._count(cell) == 1 else folder / _numbered(number)

    def _count(self, cell: Cell) -> int:
        """How many packs a cell has."""
        return -(-len(self.questions[cell.data.name].edits) // cell.together) if cell.together else 0

    def _is_unkept(self, cell: Cell) -> bool:
        """Whether a pack of this cell has been measured and is not there."""
        parts = {int(part.stem) for part in self._unfinished(cell).glob("*.json")}
        packs = range(self._count(cell))
        measured = packs if self._path(cell).is_file() else parts.intersection(packs)
        return any(not self._pack(cell, number).is_dir() for number in measured)

    def _key(self, cell: Cell) -> str:
        """Digest of all that a cell's figures depend on but the libraries, which it names itself."""
        evaluation, method = self._evaluation(cell).to_json(), cell.method.to_json()
        prompts = {PromptFormat.of(name, self.tokenizer).fingerprint() for name in (cell.data.format, None)}
        parts = {
            "hf_edit": __version__,
            "format_version": FORMAT_VERSION,
            "method": method,
            "together": cell.together,
            "seed": cell.seed,
            "data": self.questions[cell.data.name].digest,
            "format": cell.data.format,
            "prompts": sorted(prompts),
            "evaluate": evaluation,
            "contents": dict(contents({"method": method["settings"], "evaluate": evaluation})),
            "base": running_fingerprint(self.model),
        }
        return sha256(strict_json.dumps(parts)).hexdigest()

    def _read(self, path: Path, key: str) -> dict[str, Any] | None:
        if not path.is_file():
            return None
        record = strict_json.loads(path.read_bytes(), str(path))
        if record.get("key") != key:
            raise Stopped(
                f"{path} was measured with other settings, data, base or version.",
                "Give the bench another folder, or delete that cell to have it measured again.",
            )
        return record


def cell_file(folder: Path, name: str) -> Path:
    """Where a cell is kept in the folder of a bench."""
    return folder / "cells" / f"{name}.json"


def _peaks(parts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The most in each place: a part that an earlier run computed may have been on another device."""
    return {place: max(part.get(place, 0) for part in parts) for place in sorted({p for part in parts for p in part})}


def _numbered(pack: int) -> str:
    """As files of one pack of many are named."""
    return f"{pack:04d}"


def _asking(names: Iterable[str], task: Task, edited: bool) -> Iterator[str]:
    """Those that have something to ask about these edits: about all of the data each has, about a pack perhaps not."""
    for name in names:
        evaluator = EVALUATORS[name]
        if evaluator.applies(task) and (edited or not evaluator.compares):
            yield name


class Named:
    """A listener whose stages begin with a name."""

    def __init__(self, listener: Progress, name: str) -> None:
        self._listener, self._name = listener, name

    def stage(self, name: str, total: int) -> None:
        """Open a stage."""
        self._listener.stage(f"{self._name}: {name}", total)

    def step(self, advance: int = 1, **info: float | str) -> None:
        """Advance it."""
        self._listener.step(advance, **info)


def kept(path: Path, value: Mapping[str, Any]) -> dict[str, Any]:
    """Write JSON as a whole or not at all, and return what reading it gives: a resumed run sees nothing else.

    Raises:
        Stopped: it cannot be written.
    """
    data = strict_json.dumps(value)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise Stopped(
            f"{path} cannot be written: {error.strerror}.", "Choose a folder with free space that you may write to."
        ) from error
    return strict_json.loads(data, str(path))
