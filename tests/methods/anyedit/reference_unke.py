"""UnKE's training of one block, written down plainly: one text at a time, whole forwards, weights really replaced.

No cached inputs, no padding, no side paths. Slow on purpose; the fast path must equal it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_edit.methods.anyedit.unke_config import UnKESettings


Ids = tuple[int, ...]
Taught = tuple[Ids, Mapping[int, Tensor]]


def block_output(
    model: PreTrainedModel,
    block: nn.Module,
    ids: Tensor,
    weights: Mapping[str, Tensor],
    shifted: tuple[nn.Module, Mapping[int, Tensor]] | None = None,
) -> Tensor:
    """(T, d)"""
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: object) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    def shift(_: nn.Module, __: object, output: Tensor) -> Tensor:
        rows = output.reshape(-1, output.shape[-1]).clone()
        for position, change in shifted[1].items():
            rows[position] += change
        return rows.reshape(output.shape)

    handles = [block.register_forward_hook(keep)]
    if shifted is not None:
        handles.append(shifted[0].register_forward_hook(shift))
    functional_call(model, dict(weights), kwargs={"input_ids": ids, "use_cache": False})
    for handle in handles:
        handle.remove()
    return kept[0].reshape(ids.shape[1], -1)


def inputs_of(model: PreTrainedModel, linear: nn.Module, ids: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """(T, d_in)"""
    kept: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    functional_call(model, dict(weights), kwargs={"input_ids": ids, "use_cache": False})
    handle.remove()
    return kept[0].reshape(ids.shape[1], -1)


def token_weights(taught: Sequence[Taught], preserved: Sequence[Ids], settings: UnKESettings) -> list[list[float]]:
    """Per text and token, what its squared error counts in the loss, before the unit."""
    given = {"key": settings.key_weight, "own": settings.own_weight, "preserved": settings.preserved_weight}
    texts: list[tuple[Ids, Mapping[int, Tensor] | None]] = [*taught, *((ids, None) for ids in preserved)]
    kinds = [[kind(ids, place, change, taught) for place in range(len(ids))] for ids, change in texts]
    every = sum(kinds, [])
    return [[given[each] / every.count(each) if each in given else 0.0 for each in text] for text in kinds]


def kind(ids: Ids, place: int, change: Mapping[int, Tensor] | None, taught: Sequence[Taught]) -> str:
    """Of a token of a text whose keys are to change so; None: of a preserved text."""
    if change is not None and place in change:
        return "key"
    if is_key(ids[: place + 1], taught):
        return "free"
    return "preserved" if change is None else "own"


def is_key(begun: Ids, taught: Sequence[Taught]) -> bool:
    """Whether an edit begins so, and has a key at the last of these tokens."""
    return any(ids[: len(begun)] == begun and len(begun) - 1 in change for ids, change in taught)


def starting_factors(
    linears: Mapping[str, nn.Module], settings: UnKESettings
) -> tuple[dict[str, tuple[Tensor, ...]], list[dict[str, Any]]]:
    """Per linear (dW,) or (B, A), and Adam's groups."""
    generator = torch.Generator().manual_seed(0)
    factors: dict[str, tuple[Tensor, ...]] = {}
    groups: list[dict[str, Any]] = []
    for name, linear in linears.items():
        W = (linear.weight.T if isinstance(linear, Conv1D) else linear.weight).detach()
        d_out, d_in = W.shape
        step = settings.learning_rate * float(W.square().mean() ** 0.5)
        if settings.parametrisation == "full":
            factors[name] = (torch.zeros(d_out, d_in, dtype=W.dtype, requires_grad=True),)
            groups.append({"params": factors[name], "lr": step})
        else:
            r = min(settings.rank, d_out, d_in)
            A = (torch.randn(r, d_in, generator=generator, dtype=W.dtype) / d_in**0.5).requires_grad_()
            B = torch.zeros(d_out, r, dtype=W.dtype, requires_grad=True)
            factors[name] = (B, A)
            groups += [{"params": [B], "lr": step * d_in / r}]
            groups += [{"params": [A], "lr": settings.learning_rate / d_in**0.5}]
    return factors, groups


def reference_block(
    model: PreTrainedModel,
    block: nn.Module,
    mlp_out: nn.Module,
    linears: Mapping[str, nn.Module],
    taught: Sequence[Taught],
    preserved: Sequence[Ids],
    settings: UnKESettings,
) -> tuple[dict[str, Tensor], int, float]:
    """Dense dW (d_out, d_in) by linear name, before any compression, steps, and the squared change asked per key.

    Args:
        linears: the block's linear maps by name.
        taught: per edit its ids, and key position -> change of `mlp_out`'s output.
    """
    texts = [(torch.tensor([ids]), change) for ids, change in [*taught, *((ids, {}) for ids in preserved)]]
    with torch.no_grad():
        goals = [block_output(model, block, ids, {}, (mlp_out, change)) for ids, change in texts]
        own = [block_output(model, block, ids, {}) for ids, _ in texts]
    n_keys = sum(len(change) for _, change in taught)
    unit = sum(float((goal - before).square().sum()) for goal, before in zip(goals, own, strict=True)) / n_keys
    counts = token_weights(taught, preserved, settings)

    factors, groups = starting_factors(linears, settings)
    adam = torch.optim.Adam(groups)
    taken = 0
    while True:
        changes = {name: f[0] if len(f) == 1 else f[0] @ f[1] for name, f in factors.items()}
        weights = new_weights(linears, changes)
        loss, key_loss = torch.zeros((), dtype=own[0].dtype), 0.0
        for (ids, change), goal, count in zip(texts, goals, counts, strict=True):
            errors = (block_output(model, block, ids, weights) - goal).square().sum(dim=1)
            loss = loss + (torch.tensor(count, dtype=errors.dtype) * errors).sum() / unit
            key_loss += sum(errors[position].item() for position in change) / n_keys / unit
        if taken == settings.steps or key_loss**0.5 < settings.stop_error:
            return {name: dW.detach() for name, dW in changes.items()}, taken, unit
        adam.zero_grad()
        loss.backward()
        adam.step()
        taken += 1


def new_weights(linears: Mapping[str, nn.Module], changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameter name -> weight with its change, stored as the module stores it."""
    return {
        f"{name}.weight": linear.weight + (changes[name].T if isinstance(linear, Conv1D) else changes[name])
        for name, linear in linears.items()
    }


def reference_compressed(dW: Tensor, X: Tensor, rank: int) -> tuple[Tensor, float]:
    """The dense B A of that rank that is best on the columns of X, and what it loses, by eigenvectors of Y Y^T."""
    Y = dW @ X
    _, vectors = torch.linalg.eigh(Y @ Y.T)
    U = vectors[:, -rank:]
    best = U @ U.T @ dW
    return best, float((Y - best @ X).norm() / Y.norm())
