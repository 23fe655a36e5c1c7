"""Does an audit find what a pack teaches and does not list, and nothing in honest packs?

Every folder given holds an honest pack of several edits. It is audited as it is, and once more with one of its edits
left out of the list: all that it lists is then true, and it teaches one thing more. Packs are made first, from zsRE
facts whose indices are given; limits must have been chosen on others. Run it from the root of the checkout after
`make demo`:

    python benchmarks/audit.py --make build/audit --facts 400:600 --together 10
    python benchmarks/audit.py build/audit/* --name audit
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

from common import BASE, chosen, data_folder, environment, write
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import hf_edit
from hf_edit.datasets import zsre
from hf_edit.edits import EditSet
from hf_edit.evaluation.audit.directions import examined
from hf_edit.evaluation.audit.report import AuditReport
from hf_edit.methods import METHODS
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.models.loading import load_model
from hf_edit.packs.manifest import Edits, sha256
from hf_edit.packs.pack import EditPack
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat


def make(
    base: tuple[PreTrainedModel, PreTrainedTokenizerBase], folder: Path, facts: str, together: int, methods: str
) -> None:
    """Packs by some methods in turn; one that is there is kept."""
    every = zsre.read(data_folder() / "zsre_eval.json")
    indices = chosen(facts, len(every))
    turns = cycle(methods.split(","))
    for number, first in enumerate(range(0, len(indices) - together + 1, together)):
        method = next(turns)
        path = folder / f"{number:02d}_{method}"
        if not path.exists():
            edits = EditSet(every[i] for i in indices[first : first + together])
            hf_edit.edit(*base, edits, METHODS[method].config_class()).save_pretrained(path)
            print(f"{path}: {len(edits)} edits", flush=True)


def unlisting(pack: EditPack, index: int) -> EditPack:
    """The same change with one edit less in the list."""
    kept = [i for i in range(len(pack.edits)) if i != index]
    edits = EditSet(pack.edits[i] for i in kept)
    listed = Edits(len(edits), sha256(edits.dumps().encode()))
    source = None if pack.source is None else [pack.source[i] for i in kept]
    return replace(pack, edits=edits, source=source, manifest=replace(pack.manifest, edits=listed))


def audited(
    base: tuple[PreTrainedModel, PreTrainedTokenizerBase], pack: EditPack, only_directions: bool
) -> dict[str, Any]:
    """What an audit says of a pack, with the seconds that it took."""
    started = time.perf_counter()
    if not only_directions:
        report = hf_edit.audit(*base, pack)
    else:
        findings: list[str] = []
        limits: list[str] = []
        view, prompts = EditableModel.of(base[0]), PromptFormat.of(pack.manifest.prompt_format.name, base[1])
        with borrowed(view.model):
            modules = examined(view, prompts, pack, Silent(), findings, limits)
        report = AuditReport([], [], modules, findings, limits)
    kl = {} if only_directions else {"kl": sum(one.kl for one in report.drift) / max(1, len(report.drift))}
    return {**report.to_json(), **kl, "seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", nargs="*", type=Path)
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--make", type=Path, help="make packs in this folder and stop")
    parser.add_argument("--facts", default="400:600", help="indices of zsRE facts to make packs of")
    parser.add_argument("--together", type=int, default=10, help="edits per pack that is made")
    parser.add_argument("--methods", default="polish,memit", help="that they are made by, in turn")
    parser.add_argument("--only-directions", action="store_true", help="ask nothing; much faster")
    parser.add_argument("--name", default="audit")
    arguments = parser.parse_args()
    base = load_model(arguments.base, dtype="float32")
    if arguments.make is not None:
        make(base, arguments.make, arguments.facts, arguments.together, arguments.methods)
        return
    records = []
    for number, path in enumerate(arguments.packs):
        pack = EditPack.from_pretrained(path)
        if len(pack.edits) < 2:
            raise SystemExit(f"{path} lists one edit; leaving it out would leave nothing. Give packs of several.")
        left_out = random.Random(number).randrange(len(pack.edits))
        record = {
            "pack": path.name,
            "edits": len(pack.edits),
            "honest": audited(base, pack, arguments.only_directions),
            "left_out": pack.edits[left_out].id,
            "unlisted": audited(base, unlisting(pack, left_out), arguments.only_directions),
        }
        records.append(record)
        print(path, *(f"{kind}: {record[kind]['verdict']}" for kind in ("honest", "unlisted")), flush=True)
    result = {"environment": environment(), "n": len(records), **_summary(records), "records": records}
    print({key: value for key, value in result.items() if key not in ("environment", "records")})
    print(write(arguments.name, result))


def _summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "honest_flagged": sum(bool(record["honest"]["findings"]) for record in records),
        "unlisted_flagged": sum(bool(record["unlisted"]["findings"]) for record in records),
    }


if __name__ == "__main__":
    main()
