"""Teach two things, take one of them back by a single solve, and keep the other.

python take_one_back.py MODEL [OUT]
"""

import sys
from pathlib import Path

from asking import answer, load

import hf_edit
from hf_edit import EditSet


def main(base: str, out: str = "build/take-one-back") -> None:
    model, tokenizer = load(base)
    edits = EditSet.from_jsonl(Path(__file__).with_name("edits.jsonl"))
    kept, gone = edits
    questions = [kept.prompt, gone.prompt[-1].content]  # the second is a chat of one message

    pack = hf_edit.edit(model, tokenizer, edits)
    less = pack.revert([gone.id], model=model, tokenizer=tokenizer)
    less.save_pretrained(out)
    print(f"{gone.id} is taken back; left: {', '.join(less.edits.ids)}")

    said = {"base": [answer(model, tokenizer, question) for question in questions]}
    for label, one in (("both", pack), ("one", less)):
        name = hf_edit.attach(model, one)
        said[label] = [answer(model, tokenizer, question) for question in questions]
        hf_edit.detach(model, name)
    for place, question in enumerate(questions):
        print(question, *(f"  {label:5} {answers[place]}" for label, answers in said.items()), sep="\n")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
