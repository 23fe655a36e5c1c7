"""AnyEdit with the MEMIT backend, written down plainly: whole forwards, dense matrices, weights really changed.

No cached blocks, no attention prefix, no factors, no Woodbury. Slow on purpose; the fast path must equal it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_edit.methods.anyedit.config import AnyEditConfig
from hf_edit.prompting import Encoded


def chunk_bounds(answer_length: int, window: int, overlap: int) -> list[tuple[int, int]]:
    bounds, start = [], 0
    while True:
        end = min(start + window, answer_length)
        bounds.append((start, end))
        if end == answer_length:
            return bounds
        start += window - overlap


def outputs_of(model: PreTrainedModel, ids: Tensor, module: nn.Module) -> Tensor:
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: object) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(keep)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    handle.remove()
    return kept[0].reshape(ids.shape[1], -1)


def inputs_of(model: PreTrainedModel, ids: Tensor, module: nn.Module) -> Tensor:
    kept: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    handle.remove()
    return kept[0].reshape(ids.shape[1], -1)


def logits_with(model: PreTrainedModel, ids: Tensor, linear: nn.Module, changes: dict[int, Tensor]) -> Tensor:
    def add(_: nn.Module, __: object, output: Tensor) -> Tensor:
        shift = torch.zeros(ids.shape[1], output.shape[-1], dtype=output.dtype)
        for position, change in changes.items():
            onehot = F.one_hot(torch.tensor(position), ids.shape[1]).to(output.dtype)
            shift = shift + onehot[:, None] * change
        return output + shift.reshape(output.shape)

    with ExitStack() as stack:
        handle = linear.register_forward_hook(add)
        stack.callback(handle.remove)
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]


def reference_targets(
    model: PreTrainedModel,
    block: nn.Module,
    linear: nn.Module,
    encoded: Encoded,
    config: AnyEditConfig,
    behind_norm: bool,
    n_edits: int,
) -> dict[int, Tensor]:
    """Key position -> change of the linear's output there."""
    ids = torch.tensor([encoded.ids])
    start = encoded.answer_start
    stream = outputs_of(model, ids, linear if behind_norm else block)
    changes: dict[int, Tensor] = {}
    for s, e in chunk_bounds(len(encoded.ids) - start, config.window, config.overlap):
        position = start + s - 1
        h0 = stream[position]
        delta = torch.zeros_like(h0, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=config.learning_rate * float(h0.norm()) / len(h0) ** 0.5)
        best, best_loss = delta.detach().clone(), float("inf")
        for evaluation in range(config.max_evaluations):
            shown = ids[:, : start + e]  # nothing after the chunk
            logits = logits_with(model, shown, linear, {**changes, position: delta})
            predictions = logits[start + s - 1 : start + e - 1]
            loss = F.cross_entropy(predictions, ids[0, start + s : start + e])
            if loss.item() < best_loss:
                best, best_loss = delta.detach().clone(), loss.item()
            if loss.item() < config.stop_loss or evaluation + 1 == config.max_evaluations:
                break
            adam.zero_grad()
            (loss + config.weight_decay * delta.norm() / h0.norm() ** 2).backward()
            adam.step()
            with torch.no_grad():
                grown = max(0.0, 2 * (evaluation + 1) / config.max_evaluations - 1)
                first = config.clamp if s == 0 and n_edits == 1 else config.first_clamp
                longest = (first + grown * (config.clamp - first)) * h0.norm()
                if delta.norm() > longest:
                    delta.mul_(longest / delta.norm())
        changes[position] = best
    return changes


def reference_updates(
    model: PreTrainedModel,
    blocks: Sequence[nn.Module],
    linears: Sequence[nn.Module],
    encoded: Sequence[Encoded],
    changes: Sequence[dict[int, Tensor]],
    moments: Sequence[Tensor],
    config: AnyEditConfig,
    behind_norm: bool,
) -> list[Tensor]:
    """Dense dW (d_out, d_in) per layer; `model` is changed in place, layer after layer."""
    texts = [torch.tensor([e.ids]) for e in encoded]
    last = linears[-1] if behind_norm else blocks[-1]
    goals = [
        {p: outputs_of(model, ids, last)[p] + c for p, c in change.items()}
        for ids, change in zip(texts, changes, strict=True)
    ]
    updates = []
    for i, (linear, C) in enumerate(zip(linears, moments, strict=True)):
        f = C.shape[0]
        M = config.preservation * (C + config.ridge * torch.trace(C) / f * torch.eye(f, dtype=C.dtype))
        RK = torch.zeros(next(iter(goals[0].values())).shape[0], f, dtype=C.dtype)
        for ids, goal in zip(texts, goals, strict=True):
            keys, reached = inputs_of(model, ids, linear), outputs_of(model, ids, last)
            for position in range(ids.shape[1]):
                k = keys[position]
                if position in goal:
                    M = M + torch.outer(k, k)
                    RK = RK + torch.outer((goal[position] - reached[position]) / (len(linears) - i), k)
                else:
                    M = M + config.own_weight * torch.outer(k, k)
        update = RK @ torch.linalg.inv(M)
        with torch.no_grad():
            linear.weight += update.T if isinstance(linear, Conv1D) else update
        updates.append(update)
    return updates
