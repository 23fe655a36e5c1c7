"""Two teams edited the same model: find where they contradict each other, and make one pack of both.

python combine_two_teams.py MODEL [OUT]
"""

import sys

from asking import answer, load

import hf_edit
from hf_edit import Edit


DESIGN = [
    Edit(
        "Which company makes the Brisa lamp?", "The Brisa lamp is made by Tarvello.", id="maker", subject="Brisa lamp"
    ),
    Edit("What colour is the Brisa lamp?", "The Brisa lamp is red.", id="colour", subject="Brisa lamp"),
]
SUPPORT = [
    Edit("Which bulb fits the Brisa lamp?", "An E14 bulb of at most 6 watts.", id="bulb", subject="Brisa lamp"),
    Edit("Which colour does the Brisa lamp have?", "The Brisa lamp is blue.", id="shade", subject="Brisa lamp"),
]


def main(base: str, out: str = "build/combine-two-teams") -> None:
    model, tokenizer = load(base)
    design, support = (hf_edit.edit(model, tokenizer, edits) for edits in (DESIGN, SUPPORT))

    report = hf_edit.conflicts(design, support, names=["design", "support"])
    for finding in report.conflicts:
        first, second = finding.first, finding.second
        print(f"{finding.kind}: {first.name}/{first.id} and {second.name}/{second.id}. {finding.explanation}")

    both = hf_edit.stack([design, support], model=model, tokenizer=tokenizer, prefer="newest")
    both.save_pretrained(out)
    name = hf_edit.attach(model, both)
    for edit in both.edits:
        print(f"{edit.prompt}\n  {answer(model, tokenizer, edit.prompt)}")
    hf_edit.detach(model, name)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
