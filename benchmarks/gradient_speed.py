"""What an edit from gradients costs: against a plain reference, as edits grow in number, and in memory.

    python benchmarks/gradient_speed.py
    python benchmarks/gradient_speed.py --sizes 20,100,500,1000 --name gradient_speed

Three parts, all on zsRE's questions, EMSEdit's shift and two steps of a fixed size:

- against a plain reference in the same run, on the same threads, each the median of a few turns taken in alternation:
  capture and two shifts from token ids on. The reference runs whole forwards with all logits, takes gradients of
  weights beside those of outputs, solves with a dense d_in x d_in matrix by LU, and really changes weights. Three of
  them: `published`, gradients of the edited weights alone, in micro-batches of the published size; `large_batches`,
  the same in ours; `as_loaded`, a backward pass through the model as it is loaded, all weights with a gradient. All
  come to the same update, whose largest difference is reported.
- seconds per edit of the whole of `hf_edit.edit`, pack included, in batches of 100 whose keys are kept from those
  after them: with the fixed step size, and with step sizes found by forward passes.
- peak memory beyond the model for 100 edits at once, in a process of its own that gives freed blocks back at once.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import statistics
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import BASE, chosen, data_folder, environment, give_back_freed, seconds, trim, write
from torch import Tensor
from torch.nn import functional as F

import hf_edit
from hf_edit.datasets import zsre
from hf_edit.edits import EditSet
from hf_edit.errors import HfEditWarning
from hf_edit.methods.msbp.config import EMSEditConfig
from hf_edit.methods.msbp.method import EMSEdit
from hf_edit.methods.msbp.proposal import Normaliser
from hf_edit.methods.msbp.stream import Step, Stream, Transformer
from hf_edit.methods.training.texts import prepared
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.models.footprint import peak_over
from hf_edit.models.loading import load_model
from hf_edit.prompting import Encoded, PromptFormat


STEPS, STEP_SIZE = 2, 5e-4
TURNS = 3
MICRO_BATCH = 4
EPSILON = torch.finfo(torch.float32).eps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BASE))
    parser.add_argument("--zsre", default="0:1000", help="indices of records of the training file")
    parser.add_argument("--compared", type=int, default=20, help="edits that the reference learns too; 0: none")
    parser.add_argument("--sizes", default="20,100,500,1000", help="numbers of edits")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--memory", type=int, default=100, help="edits whose peak memory is measured; 0: none")
    parser.add_argument("--name", default="gradient_speed", help="name of the result")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", HfEditWarning)

    records = zsre.read(data_folder() / "zsre_train.json")
    edits = EditSet(records[i] for i in chosen(arguments.zsre, len(records)))
    result: dict[str, Any] = {"what": "zsRE in the format plain, EMSEdit's shift", "steps": STEPS}
    if arguments.memory:
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            result["memory"] = alone.apply(peak_memory, (arguments.model, edits[: arguments.memory]))
        print("memory", result["memory"])
    model, tokenizer = load_model(arguments.model)
    if arguments.compared:
        result["against_plain"] = against_plain(model, tokenizer, edits[: arguments.compared])
        print("against plain", result["against_plain"])
    result["batch"] = arguments.batch
    result["sizes"] = []
    for count in map(int, arguments.sizes.split(",")):
        result["sizes"].append(seconds_per_edit(model, tokenizer, edits[:count], arguments.batch))
        print(result["sizes"][-1], flush=True)
    print(write(arguments.name, result | {"environment": environment()}))


def settings(**values: Any) -> EMSEditConfig:
    return EMSEditConfig(format="plain", steps=STEPS, **values)


# ---- against a plain reference ---------------------------------------------------------------------------------


def against_plain(model: Any, tokenizer: Any, edits: EditSet) -> dict[str, Any]:
    """Seconds of both, their ratio, and how far the updates are apart, as a share of their size."""
    prompts = PromptFormat.of("plain", tokenizer)
    encoded = [prompts.encode(edit.prompt, edit.target) for edit in edits]
    method, view = EMSEdit(settings()), EditableModel.of(model)
    dense = copy.deepcopy(model)
    modules = {linear.name: dense.get_submodule(linear.name) for linear in method.linears(view)}
    kept = {name: module.weight.detach().clone() for name, module in modules.items()}
    updates: dict[str, Tensor] = {}
    large = method.config.at_once
    references = {"published": (MICRO_BATCH, False), "large_batches": (large, False), "as_loaded": (MICRO_BATCH, True)}
    times: dict[str, list[float]] = {name: [] for name in ("ours", *references)}
    apart = 0.0

    def ours() -> None:
        with borrowed(model):
            for name, delta in fast(view, method, encoded).items():
                updates[name] = delta

    for _ in range(TURNS):
        times["ours"].append(seconds(ours))
        for name, (size, all_weights) in references.items():
            dense.requires_grad_(all_weights)
            for module in modules.values():
                module.weight.requires_grad_(True)
            times[name].append(seconds(lambda size=size: plainly(dense, modules, encoded, size, method.config.ridge)))
            for m, module in modules.items():
                shift = module.weight.detach() - kept[m]
                apart = max(apart, float((shift - updates[m]).norm() / updates[m].norm()))
                module.weight.data.copy_(kept[m])
    medians = {name: statistics.median(each) for name, each in times.items()}
    return {
        "edits": len(edits),
        "answer_tokens": sum(len(text.answer_ids) for text in encoded),
        "seconds": medians,
        "ratio": {name: medians[name] / medians["ours"] for name in references},
        "apart": apart,
    }


def fast(view: EditableModel, method: EMSEdit, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
    """Two shifts by the project's engine, made dense for the comparison."""
    config, linears = method.config, method.linears(view)
    texts = prepared(view, encoded, linears[0].layer)
    transformers = [Transformer(Normaliser.empty(linears, view.device))] * STEPS
    stream = Stream(view, linears, method.rule, transformers, config.ridge, config.at_once)
    for number in range(STEPS):
        captured = stream.captured(texts)
        stream.take(Step(captured, stream.proposals(number, captured), STEP_SIZE))
    return {name: delta.dense() for name, delta in stream.deltas.items()}


def plainly(model: Any, modules: dict[str, Any], encoded: Sequence[Encoded], size: int, ridge: float) -> None:
    """The same two shifts, in the weights of `model`."""
    device = next(model.parameters()).device
    seen = torch.empty(0, device=device)
    texts = sorted(encoded, key=len, reverse=True)
    for _ in range(STEPS):
        keys: dict[str, list[Tensor]] = {name: [] for name in modules}
        gradients: dict[str, list[Tensor]] = {name: [] for name in modules}
        for begin in range(0, len(texts), size):
            micro_batch(model, modules, texts[begin : begin + size], keys, gradients)
        K = {name: torch.cat(rows) for name, rows in keys.items()}
        V = {name: torch.cat(rows) for name, rows in gradients.items()}
        seen = torch.cat([seen, *(torch.cat([K[name], V[name]], dim=1) for name in modules)])
        mean, std = seen.mean(dim=0), seen.std(dim=0)
        shifts = {}
        for name in modules:
            k, g = ((torch.cat([K[name], V[name]], dim=1) - mean) / (std + EPSILON)).split(
                [K[name].shape[1], V[name].shape[1]], dim=1
            )
            D = -STEP_SIZE * (K[name] * k).sum(dim=1, keepdim=True) * g
            eye = torch.eye(K[name].shape[1], device=device)
            shifts[name] = torch.linalg.solve(K[name].T @ K[name] + ridge * eye, K[name].T @ D).T
        for name, shift in shifts.items():
            modules[name].weight.data += shift


def micro_batch(
    model: Any,
    modules: dict[str, Any],
    texts: Sequence[Encoded],
    keys: dict[str, list[Tensor]],
    gradients: dict[str, list[Tensor]],
) -> None:
    """One forward and one backward pass; rows where answers are predicted are added to keys and gradients."""
    width = max(map(len, texts)) - 1
    ids = torch.tensor([[*t.ids[:-1], *[0] * (width + 1 - len(t))] for t in texts], device=model.device)
    labels = torch.full_like(ids, -100)
    for row, text in enumerate(texts):
        labels[row, text.answer_start - 1 : len(text) - 1] = torch.tensor(text.answer_ids)
    inputs, outputs = {}, {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            inputs[name], outputs[name] = args[0].detach(), output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    mask = torch.tensor([[1] * (len(t) - 1) + [0] * (width + 1 - len(t)) for t in texts], device=model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum").backward()
    where = labels != -100
    for handle in handles:
        handle.remove()
    for name in modules:
        keys[name].append(inputs[name][where])
        gradients[name].append(outputs[name].grad[where])  # type: ignore[index]
    model.zero_grad()


# ---- as edits grow in number -----------------------------------------------------------------------------------


def seconds_per_edit(model: Any, tokenizer: Any, edits: EditSet, batch: int) -> dict[str, Any]:
    """Of a whole call, with the step size given and found."""
    found: dict[str, Any] = {"edits": len(edits)}
    for name, size in (("fixed", STEP_SIZE), ("found", None)):
        packs: list[Any] = []
        config = settings(batch=batch, step_size=size)
        taken = seconds(lambda config=config, packs=packs: packs.append(hf_edit.edit(model, tokenizer, edits, config)))
        right = [figures["right"] for figures in packs[0].manifest.receipt.values()]
        found[name] = {"seconds_per_edit": taken / len(edits), "right": sum(right) / len(right)}
    found["rank"] = max(delta.rank for delta in packs[0].deltas.values())
    return found


# ---- memory ----------------------------------------------------------------------------------------------------


def peak_memory(folder: str, edits: EditSet) -> dict[str, Any]:
    """Bytes of the model, and beyond it at the peak of an edit: of the process, or of the accelerator."""
    warnings.simplefilter("ignore", HfEditWarning)
    give_back_freed()
    model, tokenizer = load_model(folder)
    base = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    hf_edit.edit(model, tokenizer, edits[:2], settings(step_size=STEP_SIZE))  # what is loaded once
    trim()
    with peak_over(model.device) as taken:
        hf_edit.edit(model, tokenizer, edits, settings())
    return {
        "edits": len(edits),
        "base_bytes": base,
        "beyond_bytes": taken.beyond,
        "share": taken.beyond / base,
        "of": "accelerator" if model.device.type == "cuda" else "resident set",
    }


if __name__ == "__main__":
    main()
