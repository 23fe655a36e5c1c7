"""Correct one answer of a model, and see what it says to other wordings and to another question.

    python fix_a_fact.py MODEL [OUT]

MODEL is a Hub id or a directory, such as build/demo/base after `make demo`.
"""

import sys

from asking import answer, load

import hf_edit
from hf_edit import Edit


MOONS = Edit(
    "How many moons does Saturn have?",
    "As of March 2025, Saturn has 274 confirmed moons.",
    id="saturn-moons",
    subject="Saturn",
    paraphrases=["What is the number of moons of Saturn?"],
    locality=[{"prompt": "How many days are there in a week?"}],
    source="Minor Planet Center, 11 March 2025",
)


def main(base: str, out: str = "build/fix-a-fact") -> None:
    model, tokenizer = load(base)
    questions = [MOONS.prompt, *MOONS.paraphrases, *(probe.prompt for probe in MOONS.locality)]
    before = [answer(model, tokenizer, question) for question in questions]

    pack = hf_edit.edit(model, tokenizer, [MOONS])  # the model stays as it is
    pack.save_pretrained(out)

    name = hf_edit.attach(model, pack)
    for question, was in zip(questions, before, strict=True):
        print(f"{question}\n  before: {was}\n  after:  {answer(model, tokenizer, question)}")
    hf_edit.detach(model, name)  # bit for bit the base again
    print(f"pack: {out}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
