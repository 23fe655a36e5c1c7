"""Facts that arrive day by day: each day's pack is computed on top of those before it, which stay as they are.

python a_stream_of_edits.py MODEL [OUT]
"""

import sys
from pathlib import Path

from asking import answer, load

import hf_edit
from hf_edit import EditSet, EMSEditConfig


A_DAY = 4


def main(base: str, out: str = "build/a-stream") -> None:
    model, tokenizer = load(base)
    facts = EditSet.from_jsonl(Path(__file__).with_name("facts.jsonl"))
    packs = []
    for start in range(0, len(facts), A_DAY):
        day = len(packs) + 1
        pack = hf_edit.edit(model, tokenizer, facts[start : start + A_DAY], EMSEditConfig(), earlier=packs)
        pack.save_pretrained(Path(out) / f"day-{day}")
        hf_edit.attach(model, pack, name=f"day_{day}")
        packs.append(pack)
        for number, earlier in enumerate(packs, 1):
            right = sum(answer(model, tokenizer, fact.prompt, 40) == fact.target for fact in earlier.edits)
            print(f"after day {day}: of day {number}'s facts {right} of {len(earlier.edits)} word for word")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
