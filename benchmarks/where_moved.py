"""Where does a pack move other questions: which of their tokens must the update act on for their answers to change?

The pack's update is applied at some of the tokens only: those before the question, the question's, those between it
and the answer, the answer's; at all of them, and at all but the answer's. Reported is the KL of the base's own answers
to questions that are not edited, per answer token. Run it from the root of the checkout after `make demo`:

    python benchmarks/where_moved.py build/demo/pack
    python benchmarks/where_moved.py PACK --unke 300:308 --name where_moved
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from common import BASE, chosen, data_folder, environment, write
from torch import Tensor

from hf_edit import EditPack
from hf_edit.datasets import unke
from hf_edit.evaluation.drift import log_probs, reference
from hf_edit.models.loading import load_model
from hf_edit.prompting import Encoded, PromptFormat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", help="directory or id of the pack")
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--unke", default="300:308", help="indices of records that the pack does not teach")
    parser.add_argument("--name", default="where_moved", help="name of the result")
    arguments = parser.parse_args()

    model, tokenizer = load_model(arguments.model)
    pack = EditPack.from_pretrained(arguments.pack)
    pack.verify(model)
    prompts = PromptFormat.of(pack.manifest.prompt_format.name, tokenizer)
    records = unke.read(data_folder() / "unke.json")
    base = reference(model, prompts, [records[i].prompt for i in chosen(arguments.unke, len(records))])
    dense = {name: delta.dense().to(model.dtype) for name, delta in pack.deltas.items()}

    moved: dict[str, float] = {}
    tokens = sum(len(before) for before in base.log_probs)
    for question, text, before in zip(base.questions, base.texts, base.log_probs, strict=True):
        for part, mask in parts(prompts, str(question), text).items():
            with acting(model, dense, mask):
                after = log_probs(model, text)
            moved[part] = moved.get(part, 0.0) + float((before.exp() * (before - after)).sum()) / tokens
    for label, kl in moved.items():
        print(f"{label:28} {kl:.4f}")
    print(
        write(
            arguments.name,
            {"pack": pack.manifest.identity(), "edits": len(pack.edits), "kl": moved, "environment": environment()},
        )
    )


def parts(prompts: PromptFormat, question: str, text: Encoded) -> dict[str, Tensor]:
    """Part of a text -> which of its tokens belong to it, (T,)."""
    asked = prompts.text_ids(question)[1:]  # the first token may be another one behind what stands before it
    starts = [i for i in range(text.answer_start) if text.ids[i : i + len(asked)] == tuple(asked)]
    start, end = starts[-1] - 1, starts[-1] + len(asked)
    place = torch.arange(len(text.ids))
    return {
        "everywhere": place >= 0,
        "before the question": place < start,
        "question": (place >= start) & (place < end),
        "between": (place >= end) & (place < text.answer_start),
        "answer": place >= text.answer_start,
        "all but the answer": place < text.answer_start,
    }


@contextmanager
def acting(model: Any, dense: dict[str, Tensor], mask: Tensor) -> Iterator[None]:
    """The update at some of the tokens of a text that is run alone."""
    with ExitStack() as stack:
        for name, dW in dense.items():

            def add(module: Any, inputs: tuple[Tensor], output: Tensor, dW: Tensor = dW) -> Tensor:
                return output + inputs[0] @ dW.T * mask[:, None].to(output)

            stack.callback(model.get_submodule(name).register_forward_hook(add).remove)
        yield


if __name__ == "__main__":
    main()
