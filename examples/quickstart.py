"""Teach a model two things, save them as a pack, attach it and take it off again.

    python quickstart.py MODEL [OUT]

MODEL is a Hub id or a directory, such as build/demo/base after `make demo`.
"""

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_edit
from hf_edit import EditPack, EditSet


def main(base: str, out: str = "build/quickstart") -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    edits = EditSet.from_jsonl(Path(__file__).with_name("edits.jsonl"))

    pack = hf_edit.edit(model, tokenizer, edits)  # the model stays as it is
    pack.save_pretrained(out)

    pack = EditPack.from_pretrained(out)
    pack.verify(model)
    name = hf_edit.attach(model, pack)
    chat = [{"role": "user", "content": edits[0].prompt}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**prompt, do_sample=False, max_new_tokens=100)
    print(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
    hf_edit.detach(model, name)  # bit for bit the base again


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python quickstart.py MODEL [OUT]")
    main(*sys.argv[1:])
