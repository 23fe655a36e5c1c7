"""Merge a pack into the weights, save the model, and get the base back from it bit for bit.

python merge_and_undo.py MODEL [OUT]
"""

import sys
from pathlib import Path

import torch
from asking import load
from transformers import AutoModelForCausalLM

import hf_edit
from hf_edit import Edit


LAMP = Edit(
    "Which company makes the Brisa lamp?", "The Brisa lamp is made by Tarvello.", id="maker", subject="Brisa lamp"
)


def main(base: str, out: str = "build/merge-and-undo") -> None:
    model, tokenizer = load(base)
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pack = hf_edit.edit(model, tokenizer, [LAMP])

    report = hf_edit.merge_report(model, pack)
    print(f"of the change {report.total.survival:.1%} survives rounding to {model.dtype}", report.advice or "")
    hf_edit.merge(model, pack)
    folder = Path(out) / "merged"
    model.save_pretrained(folder)  # brings what is needed to undo it
    tokenizer.save_pretrained(folder)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, original[name])]
    print(f"merged: {len(changed)} tensors differ from the base, model in {folder}")

    again = AutoModelForCausalLM.from_pretrained(folder)  # another day
    hf_edit.unmerge(again, folder)
    same = all(torch.equal(tensor, original[name]) for name, tensor in again.state_dict().items())
    print(f"undone: every bit as in the base: {same}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
