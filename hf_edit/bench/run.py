"""Running a bench: cell by cell, kept as they are finished, into one bench.json."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_edit._version import __version__
from hf_edit.bench.cells import FORMAT_VERSION, Bench, Cell, Stopped, cells_of, kept
from hf_edit.bench.config import BenchConfig
from hf_edit.bench.questions import read_questions, running_text
from hf_edit.bench.results import RESULT, joined
from hf_edit.bench.summary import summary
from hf_edit.errors import HfEditError, HubError
from hf_edit.evaluation.recall import Recall
from hf_edit.hub.client import repo_of
from hf_edit.models.editable import EditableModel
from hf_edit.models.fingerprint import running_fingerprint
from hf_edit.processes import Processes, alone
from hf_edit.progress import Progress, Silent


def run_bench(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: BenchConfig,
    out: str | os.PathLike[str],
    *,
    data_folder: Path | None = None,
    keep_packs: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every method on every data set and write `out`/bench.json.

    Finished cells lie in `out`/cells, and are not measured again: a bench that was killed goes on where it was. What
    earlier benches measured into `out` beside these cells stays in its bench.json. Started by `accelerate launch`,
    several processes share the cells; they must see the same folder, and the first of them writes the result. A cell
    whose method cannot teach the edits is told as refused, and the others go on.

    Args:
        model: the base, which comes back as it was.
        data_folder: of the files that the data sets name; none: $HF_EDIT_DATA, or the working directory.
        keep_packs: save every pack with its figures and card in `out`/packs.
        progress: who is told how far it is.

    Returns:
        What bench.json holds.

    Raises:
        ConfigError: a file is not there, an evaluator has nothing to ask, or `out` holds cells of another bench, such
            as one of another base.
        InvalidEditError: a file cannot be read as edits, or an edit is longer than the model's context.
    """
    text = running_text(config.text, data_folder)
    questions = {data.name: read_questions(data, text, data_folder) for data in config.data}
    folder, base = Path(out), running_fingerprint(model)
    view, listener = EditableModel.of(model), progress or Silent()
    processes = Processes.joined(view.device)
    said = folder / ".base"
    bench = Bench(model, tokenizer, config, questions, folder, keep_packs, Recall(base, said), processes.count)
    cells = cells_of(config, {name: len(one.edits) for name, one in questions.items()})
    bench.check(cells)

    def result(told: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        own = {
            "format_version": FORMAT_VERSION,
            "hf_edit": __version__,
            "settings": config.to_json(),
            "base": {**_base(model, view), "fingerprint": base},
            "edits": {name: {"ids": list(one.edits.ids), "sha256": one.digest} for name, one in questions.items()},
            "cells": [cell for cell in told if "refused" not in cell],
            "refused": [cell for cell in told if "refused" in cell],
        }
        return joined(own, {cell.name for cell in cells}, folder)

    def measured(cell: Cell) -> dict[str, Any]:
        try:
            with alone():
                return summary(cell, bench.measured(cell, listener))
        except (Stopped, HubError):
            raise
        except HfEditError as error:
            return {"name": cell.name, "data": cell.data.name, "method": cell.method.label, "refused": str(error)}

    def written() -> dict[str, Any]:
        shutil.rmtree(said, ignore_errors=True)
        return kept(folder / RESULT, result(found))

    result()  # what cannot stand beside the folder's other cells is told before anything is measured
    found = processes.map(measured, cells)
    return processes.once(written)


def _base(model: PreTrainedModel, view: EditableModel) -> dict[str, Any]:
    return {
        "id": repo_of(model.config._name_or_path),
        "revision": getattr(model.config, "_commit_hash", None),
        "model_type": model.config.model_type,
        "layers": view.n_layers,
        "hidden_size": view.hidden_size,
        "parameters": model.num_parameters(),
    }
