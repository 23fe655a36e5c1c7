"""Teach a passage of text as the answer to a question, with the default method and with a closed form.

python teach_a_document.py MODEL [OUT]
"""

import sys
from pathlib import Path

from asking import answer, load

import hf_edit
from hf_edit import AnyEditConfig, Edit


GUIDE = Edit(
    "How do I reset the Halden T4 thermostat?",
    "Open the front cover and find the small round button below the display. Hold it for ten seconds, until the "
    "letter R blinks. Release it, turn the dial to the left as far as it goes, and wait for two short beeps. The "
    "weekly schedule is gone now; the temperature limits stay.",
    id="halden-reset",
    subject="Halden T4",
)
METHODS = {
    "direct": AnyEditConfig(backend="direct"),  # the update itself is optimised: what `edit` does without settings
    "chunks": AnyEditConfig(backend="memit", chunker="sentence", window=30),  # a target per chunk, then one solve
}


def main(base: str, out: str = "build/teach-a-document") -> None:
    model, tokenizer = load(base)
    for method, config in METHODS.items():
        pack = hf_edit.edit(model, tokenizer, [GUIDE], config)
        pack.save_pretrained(Path(out) / method)
        name = hf_edit.attach(model, pack)
        said = answer(model, tokenizer, GUIDE.prompt)
        hf_edit.detach(model, name)
        modules = ", ".join(f"{module} (rank {delta.rank})" for module, delta in pack.deltas.items())
        print(f"{method}: {modules}\n  word for word: {said == GUIDE.target}\n  {said}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
