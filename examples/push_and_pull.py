"""Publish a pack, fetch it again by its tag, and check that it belongs to the model.

    python push_and_pull.py MODEL OWNER/NAME

It goes to the Hub that you are logged in to, or to the one that HF_ENDPOINT names; MODEL must be an id there. To try
it for nobody to see, make the repository private first.
"""

import sys

from asking import load

import hf_edit
from hf_edit import Edit, EditPack


LAMP = Edit(
    "Which company makes the Brisa lamp?", "The Brisa lamp is made by Tarvello.", id="maker", subject="Brisa lamp"
)


def main(base: str, repository: str, tag: str = "v1") -> None:
    model, tokenizer = load(base)
    pack = hf_edit.edit(model, tokenizer, [LAMP])
    commit = pack.push_to_hub(repository, tag=tag, message="Who makes the Brisa lamp")
    print(f"published: {commit.url}")

    fetched = EditPack.from_pretrained(repository, revision=tag)
    print(f"fetched:   commit {fetched.origin.commit}, teaches {', '.join(fetched.edits.ids)}")
    fetched.verify(model)
    print(f"verified:  made for these weights of {fetched.base}")
    name = hf_edit.attach(model, fetched)
    hf_edit.detach(model, name)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
