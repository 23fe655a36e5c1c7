"""A pack in a transformers pipeline: the pipeline needs to know nothing of it.

python with_pipeline.py MODEL [OUT]
"""

import sys

from asking import load
from transformers import pipeline

import hf_edit
from hf_edit import Edit


LAMP = Edit(
    "Which company makes the Brisa lamp?", "The Brisa lamp is made by Tarvello.", id="maker", subject="Brisa lamp"
)


def main(base: str, out: str = "build/with-pipeline") -> None:
    model, tokenizer = load(base)
    hf_edit.edit(model, tokenizer, [LAMP]).save_pretrained(out)
    chat = [{"role": "user", "content": LAMP.prompt}]

    def said(pipe) -> str:
        return pipe(chat, do_sample=False, max_new_tokens=40)[0]["generated_text"][-1]["content"]

    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    print("base:                       ", said(pipe))
    name = hf_edit.attach(model, out)  # the pipeline's own model
    print("with the pack attached:     ", said(pipe))
    hf_edit.detach(model, name)
    print("detached:                   ", said(pipe))

    # the pack's folder or Hub id in place of a model: transformers finds the base by itself
    print("a pipeline made of the pack:", said(pipeline("text-generation", model=out, tokenizer=base)))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
