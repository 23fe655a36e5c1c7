"""A pack merged into its base and out again, in every dtype: what survives rounding, and whether all comes back.

For each dtype and rounding: the survival and error of the change that are predicted from a sample of rows, those that
merging measured, the share of edits that are answered word for word with the pack attached and merged, and whether
every tensor of the base is bit for bit what it was after `unmerge`, here and in another process that only has what
`save_pretrained` wrote. Run it from the root of the checkout after `make demo`:

    python benchmarks/merging.py build/demo/pack
    python benchmarks/merging.py --dtypes bfloat16 --name merging_many packs/many
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from common import BASE, environment, shown, write
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import hf_edit
from hf_edit import EditPack
from hf_edit.compose.rounding import ROUNDINGS
from hf_edit.errors import HfEditWarning
from hf_edit.evaluation.answers import edit_answers
from hf_edit.evaluation.scores import exact
from hf_edit.models.loading import load_model


ELSEWHERE = """
import sys, torch, hf_edit
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
hf_edit.unmerge(model, sys.argv[1])
model.save_pretrained(sys.argv[2])
"""
COUNTED = ("survival", "error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", help="directory or id of the pack")
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--dtypes", default="float32,bfloat16,float16")
    parser.add_argument("--name", default="merging", help="name of the result")
    arguments = parser.parse_args()

    warnings.simplefilter("ignore", HfEditWarning)  # the figures say it
    pack = EditPack.from_pretrained(arguments.pack)
    rows = []
    for dtype in arguments.dtypes.split(","):
        for rounding in ROUNDINGS:
            rows.append({"dtype": dtype, "rounding": rounding, **merged(arguments.model, dtype, rounding, pack)})
            print(shown(rows[-1]), flush=True)
    print(
        write(
            arguments.name,
            {
                "what": "a pack merged and unmerged; answers by greedy free generation with natural stop",
                "pack": {"method": pack.manifest.method.name, "edits": len(pack.edits)},
                "rows": rows,
                "environment": environment(),
            },
        )
    )


def merged(name: str, dtype: str, rounding: Any, pack: EditPack) -> dict[str, Any]:
    """The row of one dtype and rounding."""
    model, tokenizer = load_model(name, dtype=dtype)
    before = digests(model)
    adapter = hf_edit.attach(model, pack)
    attached = right(model, tokenizer, pack)
    hf_edit.detach(model, adapter)
    predicted = hf_edit.merge_report(model, pack, rounding=rounding)
    started = time.perf_counter()
    receipt = hf_edit.merge(model, pack, rounding=rounding)
    seconds = time.perf_counter() - started
    measured = receipt.merges[-1].loss["modules"]
    row = {
        **{what: receipt.merges[-1].loss["all"][what] for what in COUNTED},
        **{
            f"{what}_predicted_off": max(
                abs(loss.to_json()[what] - measured[module][what]) for module, loss in predicted.predicted.items()
            )
            for what in COUNTED
        },
        "exact_attached": attached,
        "exact_merged": right(model, tokenizer, pack),
        "seconds": seconds,
        "receipt_bytes": sum(tensor.numel() * tensor.element_size() for tensor in receipt.backup.values()),
    }
    with tempfile.TemporaryDirectory() as folder:
        there, back = Path(folder) / "merged", Path(folder) / "back"
        model.save_pretrained(there)
        subprocess.run([sys.executable, "-c", ELSEWHERE, str(there), str(back)], check=True, capture_output=True)
        row["comes_back_elsewhere"] = digests(AutoModelForCausalLM.from_pretrained(back, dtype="auto")) == before
    hf_edit.unmerge(model, receipt)
    return {**row, "comes_back": digests(model) == before}


def right(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pack: EditPack) -> float:
    """Share of the edits that are answered word for word."""
    said = edit_answers(model, pack.prompts(tokenizer), list(pack.edits))
    return sum(exact(answer, edit.target) for answer, edit in zip(said, pack.edits, strict=True)) / len(said)


def digests(model: torch.nn.Module) -> dict[str, str]:
    """Name -> sha256 of the bytes of every tensor."""
    return {
        name: sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in model.state_dict().items()
    }


if __name__ == "__main__":
    main()
