"""AnyEdit with the backends MEMIT and AlphaEdit, plainly: whole forwards, dense matrices, weights really changed.

No cached blocks, no attention prefix, no batches, no factors, no Woodbury. Slow on purpose; the fast path must equal
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_edit.methods.anyedit.config import AnyEditConfig
from hf_edit.prompting import Encoded, PromptFormat


Bounds = list[tuple[int, int]]
Nll = Callable[[Tensor], Tensor]


def chunk_bounds(model: PreTrainedModel, prompts: PromptFormat, encoded: Encoded, config: AnyEditConfig) -> Bounds:
    length = len(encoded.answer_ids)
    if config.chunker == "none":
        return [(0, length)]
    if config.chunker == "window":
        return window_bounds(length, config.window, config.overlap)
    if config.chunker == "sentence":
        return sentence_bounds(prompts, encoded, config.min_chunk, config.window)
    ids = torch.tensor([encoded.ids])
    with torch.no_grad():
        p = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].softmax(dim=-1)
    surprise = {j: -float(p[encoded.answer_start + j - 1, encoded.answer_ids[j]].log()) for j in range(length)}
    begun: set[int] = set()
    while len(begun) < length / config.window:
        begun.add(max((j for j in surprise if j not in begun), key=lambda j: (surprise[j], -j)))
    edges = [*sorted(begun | {0}), length]
    return list(zip(edges, edges[1:], strict=False))


def sentence_bounds(prompts: PromptFormat, encoded: Encoded, smallest: int, largest: int) -> Bounds:
    """Of answers whose sentences end in a full stop and whose characters are one byte each."""
    ids = encoded.answer_ids
    edges = [0]
    for count in range(1, len(ids)):
        before, after = prompts.decode(ids[:count]), prompts.decode(ids)[len(prompts.decode(ids[:count])) :]
        if before.endswith(".") and after.startswith(" ") and count - edges[-1] >= smallest:
            edges.append(count)
    if len(edges) > 1 and len(ids) - edges[-1] < smallest:
        edges.pop()
    bounds = []
    for start, end in zip(edges, [*edges[1:], len(ids)], strict=True):
        parts = -(-(end - start) // largest)
        inner = [start + (end - start) * part // parts for part in range(parts + 1)]
        bounds += list(zip(inner, inner[1:], strict=False))
    return bounds


def window_bounds(answer_length: int, window: int, overlap: int) -> Bounds:
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
    bounds: Bounds,
    config: AnyEditConfig,
    behind_norm: bool,
    n_edits: int,
) -> dict[int, Tensor]:
    """Key position -> change of the linear's output there."""
    ids = torch.tensor([encoded.ids])
    start = encoded.answer_start
    stream = outputs_of(model, ids, linear if behind_norm else block)
    changes: dict[int, Tensor] = {}
    for m, (s, _) in enumerate(bounds):
        position = start + s - 1
        h0 = stream[position]
        texts = bounds[m : m + 1]  # what the target is optimised for
        if config.objective == "nested":
            texts = bounds[m:] if config.nested_chunks is None else bounds[m : m + config.nested_chunks]
        ends = [end for _, end in texts]

        def nll(delta: Tensor, s: int = s, position: int = position, last: int = ends[-1]) -> Tensor:
            shown = ids[:, : start + last]  # nothing after the texts
            logits = logits_with(model, shown, linear, {**changes, position: delta})
            labels = ids[0, start + s : start + last]
            return F.cross_entropy(logits[start + s - 1 : start + last - 1], labels, reduction="none")

        lengths = [end - s for end in ends]
        delta = torch.zeros_like(h0, requires_grad=True)
        step = config.learning_rate * float(h0.norm()) / len(h0) ** 0.5
        coefficients = affinity_coefficients(nll, delta, lengths, step)
        adam = torch.optim.Adam([delta], lr=step)
        best, best_loss = delta.detach().clone(), float("inf")
        for evaluation in range(config.max_evaluations):
            losses = nll(delta)
            total = sum(c * losses[:n].sum() for c, n in zip(coefficients, lengths, strict=True))
            loss = total / sum(c * n for c, n in zip(coefficients, lengths, strict=True))
            if loss.item() < best_loss:
                best, best_loss = delta.detach().clone(), loss.item()
            if loss.item() < config.stop_loss or evaluation + 1 == config.max_evaluations:
                break
            adam.zero_grad()
            (loss + config.weight_decay * delta.norm() / h0.norm() ** 2).backward()
            adam.step()
            with torch.no_grad():
                grown = max(0.0, 2 * (evaluation + 1) / max(1, config.max_evaluations - 1) - 1)
                first = config.clamp if s == 0 and n_edits == 1 else config.first_clamp
                longest = (first + grown * (config.clamp - first)) * h0.norm()
                if delta.norm() > longest:
                    delta.mul_(longest / delta.norm())
        changes[position] = best
    return changes


def affinity_coefficients(nll: Nll, delta: Tensor, lengths: list[int], step: float) -> list[float]:
    """2 - the mean cosine of each text's gradient with the first text's, along three steps of Adam on the first."""
    if len(lengths) == 1:
        return [1.0]
    delta = delta.detach().clone().requires_grad_()
    adam = torch.optim.Adam([delta], lr=step)
    cosines = [0.0] * len(lengths)
    for _ in range(3):
        losses = nll(delta)
        gradients = [torch.autograd.grad(losses[:n].mean(), delta, retain_graph=True)[0] for n in lengths]
        for text, gradient in enumerate(gradients):
            own = gradients[0]
            cosines[text] += float(gradient @ own / (gradient.norm() * own.norm())) / 3
        delta.grad = gradients[0]
        adam.step()
    return [2 - cosine for cosine in cosines]


def reference_updates(
    model: PreTrainedModel,
    blocks: Sequence[nn.Module],
    linears: Sequence[nn.Module],
    encoded: Sequence[Encoded],
    changes: Sequence[dict[int, Tensor]],
    moments: Sequence[Tensor],
    earlier: Sequence[Encoded],
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
        KK = torch.zeros_like(C)  # over keys and preserved tokens
        RK = torch.zeros(next(iter(goals[0].values())).shape[0], f, dtype=C.dtype)
        for ids, goal in zip(texts, goals, strict=True):
            keys, reached = inputs_of(model, ids, linear), outputs_of(model, ids, last)
            for position in range(ids.shape[1]):
                k = keys[position]
                if position in goal:
                    KK += torch.outer(k, k)
                    RK += torch.outer((goal[position] - reached[position]) / (len(linears) - i), k)
                else:
                    KK += config.own_weight * torch.outer(k, k)
        for text in earlier:
            for k in inputs_of(model, torch.tensor([text.ids]), linear):
                KK += config.earlier_weight * torch.outer(k, k)
        eye, mean_eigenvalue = torch.eye(f, dtype=C.dtype), torch.trace(C) / f
        if config.backend == "memit":
            update = RK @ torch.linalg.inv(KK + config.preservation * (C + config.ridge * mean_eigenvalue * eye))
        else:
            P = null_projector(C, config.null_share)
            update = RK @ P @ torch.linalg.inv(KK @ P + config.beta * mean_eigenvalue * eye)
        with torch.no_grad():
            linear.weight += update.T if isinstance(linear, Conv1D) else update
        updates.append(update)
    return updates


def null_projector(C: Tensor, share: float) -> Tensor:
    """Onto the eigenvectors of the smallest eigenvalues, as many as together hold at most that share of the trace."""
    P, held = torch.zeros_like(C), 0.0
    eigenvalues, eigenvectors = torch.linalg.eigh(C)
    for value, vector in zip(eigenvalues, eigenvectors.T, strict=True):
        held += float(value)
        if held > share * float(torch.trace(C)):
            return P
        P += torch.outer(vector, vector)
    return P
