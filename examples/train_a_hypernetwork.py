"""Train a network that turns gradients into edits, and use it on facts that it was not trained on.

    python train_a_hypernetwork.py MODEL [OUT [EDITS]]

EDITS is a JSONL file of facts with paraphrases. The dozen that lie beside this script only show the calls: a network
that is worth its name wants about a thousand, such as zsRE's (`hf-edit train --edits-format zsre`).
"""

import sys
from pathlib import Path

from asking import load

import hf_edit
from hf_edit import EditSet, EMSEditConfig, HypernetConfig


FACTS = Path(__file__).with_name("facts.jsonl")


def main(base: str, out: str = "build/hypernetwork", edits: str = str(FACTS)) -> None:
    model, tokenizer = load(base)
    facts = EditSet.from_jsonl(edits)
    third = max(1, len(facts) // 3)
    new, known = facts[:third], facts[third:]

    network = hf_edit.train(model, tokenizer, known, HypernetConfig(format="plain", batch=4))
    network.save_pretrained(Path(out) / "net")
    for record in network.manifest.figures["validation"]:
        print(f"after {record['batches']} batches: validation loss {record['loss']:.3f}")

    config = EMSEditConfig(format="plain", hypernet=str(Path(out) / "net"))
    pack = hf_edit.edit(model, tokenizer, new, config)
    pack.save_pretrained(Path(out) / "pack")
    print(f"{len(new)} new facts taught in {network.manifest.steps} steps: {Path(out) / 'pack'}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
