"""Open an edit pack without hf_edit: ask, attach, ask again, detach, ask again.

    python open_pack.py BASE PACK

Needs transformers and peft only. The questions are read from the pack's own edits.jsonl. Exit code 1 if an edit is not
answered exactly, or the base does not come back. What became of unrelated answers is shown.
"""

import json
import sys
import textwrap
from collections.abc import Mapping

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


def shown(label: str, answer: str) -> str:
    """An answer as one indented paragraph, cut where a rambling one becomes tiresome."""
    text = textwrap.shorten(answer, 700, placeholder=" …")
    return textwrap.fill(text, 100, initial_indent=label, subsequent_indent=" " * len(label))


def main(base: str, pack: str) -> int:
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    with open(f"{pack}/edits.jsonl", encoding="utf-8") as file:
        edits = [json.loads(line) for line in file]

    def inputs(question: str) -> Mapping[str, torch.Tensor]:
        chat = [{"role": "user", "content": question}]
        return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)

    def answer(question: str) -> str:
        prompt = inputs(question)
        ids = model.generate(**prompt, do_sample=False, max_new_tokens=200)
        return tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    @torch.no_grad()
    def logits(question: str) -> torch.Tensor:
        return model(**inputs(question)).logits

    taught = [edit["prompt"] for edit in edits]
    reworded = [wording for edit in edits for wording in edit.get("paraphrases", [])]
    unrelated = [probe["prompt"] for edit in edits for probe in edit.get("locality", [])]
    questions = taught + reworded + unrelated

    before = {question: answer(question) for question in questions}
    logits_before = logits(taught[0])
    model.load_adapter(pack)
    after = {question: answer(question) for question in questions}
    model.disable_adapters()
    back = {question: answer(question) for question in questions}
    same_logits = torch.equal(logits_before, logits(taught[0]))

    for title, group in (("taught", taught), ("reworded", reworded), ("unrelated", unrelated)):
        for question in group:
            print(f"[{title}] {question}")
            print(shown("  before: ", before[question]))
            print(shown("  after:  ", "(the same)" if after[question] == before[question] else after[question]), "\n")

    exact = sum(after[edit["prompt"]] == edit["target"].strip() for edit in edits)
    unchanged = sum(after[question] == before[question] for question in unrelated)
    is_back = back == before and same_logits
    print(f"taught, answered exactly:      {exact} of {len(edits)}")
    print(f"unrelated, answer unchanged:   {unchanged} of {len(unrelated)}")
    print(f"adapter disabled, base back:   {'yes, same texts and equal logits' if is_back else 'no'}")
    print(f"hf_edit imported here:         {'yes' if 'hf_edit' in sys.modules else 'no'}")
    return 0 if exact == len(edits) and is_back else 1  # a word of an unrelated answer may change, and is shown


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python open_pack.py BASE PACK")
    sys.exit(main(*sys.argv[1:]))
