"""MEMIT and AlphaEdit, written down plainly: one fact and one text at a time, whole forwards, dense matrices.

No batches, no cached blocks, no attention prefix, no factors; weights are really changed. Slow on purpose; the fast
path must equal it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_edit.methods.memit.config import AlphaEditConfig, MemitConfig, ShortFactConfig
from hf_edit.methods.memit.facts import Fact
from tests.methods.anyedit.reference import inputs_of, logits_with, outputs_of


@dataclass
class Found:
    """What is wanted of one fact: state and change at its key, with the figures of the change."""

    state: Tensor
    delta: Tensor
    loss: float
    divergence: float
    evaluations: int


def reference_target(
    model: PreTrainedModel,
    block: nn.Module,
    linear: nn.Module,
    fact: Fact,
    config: ShortFactConfig,
    behind_norm: bool,
) -> Found:
    def ids_of(ids: tuple[int, ...]) -> Tensor:
        return torch.tensor([ids])

    own = fact.texts[0]
    h0 = outputs_of(model, ids_of(own.encoded.ids), linear if behind_norm else block)[own.key]
    if fact.essence is not None:
        with torch.no_grad():
            base = logits_with(model, ids_of(fact.essence.encoded.ids), linear, {})[-1].log_softmax(-1)
    delta = torch.zeros_like(h0, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=config.learning_rate * float(h0.norm()) / len(h0) ** 0.5)
    found, lowest = None, float("inf")
    for evaluation in range(1, config.max_evaluations + 1):
        nlls = []
        for text in fact.texts:
            ids, start = ids_of(text.encoded.ids), text.encoded.answer_start
            logits = logits_with(model, ids, linear, {text.key: delta})
            nlls.append(F.cross_entropy(logits[start - 1 : -1], ids[0, start:]))
        nll = nlls[0] if len(nlls) == 1 else nlls[0] / 2 + sum(nlls[1:]) / (2 * len(nlls[1:]))
        kl = torch.zeros(())
        if fact.essence is not None:
            logits = logits_with(model, ids_of(fact.essence.encoded.ids), linear, {fact.essence.key: delta})
            kl = F.kl_div(logits[-1].log_softmax(-1), base, log_target=True, reduction="sum")
        loss = nll + config.kl_weight * kl
        if loss.item() < lowest:
            lowest = loss.item()
            found = Found(h0, delta.detach().clone(), nll.item(), kl.item(), 0)
        if nll.item() < config.stop_loss:
            break
        if evaluation < config.max_evaluations:
            adam.zero_grad()
            (loss + config.weight_decay * delta.norm() / h0.norm()).backward()
            adam.step()
            with torch.no_grad():
                if delta.norm() > config.clamp * h0.norm():
                    delta.mul_(config.clamp * h0.norm() / delta.norm())
    assert found is not None
    found.evaluations = evaluation
    return found


def reference_updates(
    model: PreTrainedModel,
    blocks: Sequence[nn.Module],
    linears: Sequence[nn.Module],
    facts: Sequence[Fact],
    found: Sequence[Found],
    earlier: Sequence[tuple[int, ...]],
    moments: Sequence[Tensor],
    config: ShortFactConfig,
    behind_norm: bool,
) -> list[Tensor]:
    """Dense dW (d_out, d_in) per layer; `model` is changed in place, layer after layer."""
    last = linears[-1] if behind_norm else blocks[-1]
    updates = []
    for i, (linear, C) in enumerate(zip(linears, moments, strict=True)):
        K, R = [], []
        for fact, target in zip(facts, found, strict=True):
            keys = [inputs_of(model, torch.tensor([t.encoded.ids]), linear)[t.key] for t in fact.texts]
            K.append(keys[0] if len(keys) == 1 else keys[0] / 2 + torch.stack(keys[1:]).mean(0) / 2)
            reached = outputs_of(model, torch.tensor([fact.texts[0].encoded.ids]), last)[fact.key]
            R.append((target.state + target.delta - reached) / (len(linears) - i))
        keys, residuals = torch.stack(K).T, torch.stack(R).T
        gram = keys @ keys.T
        for ids in earlier:
            k = inputs_of(model, torch.tensor([ids]), linear)
            gram = gram + config.earlier_weight * k.T @ k
        eye = torch.eye(len(C), dtype=C.dtype)
        mean_eigenvalue = torch.trace(C) / len(C)
        if isinstance(config, MemitConfig):
            M = config.preservation * (C + config.ridge * mean_eigenvalue * eye) + gram
            update = residuals @ keys.T @ torch.linalg.inv(M)
        else:
            assert isinstance(config, AlphaEditConfig)
            values, vectors = torch.linalg.eigh(C)
            U0 = vectors[:, values.cumsum(0) <= config.null_share * values.sum()]
            P = U0 @ U0.T
            update = residuals @ keys.T @ P @ torch.linalg.inv(gram @ P + config.beta * mean_eigenvalue * eye)
        with torch.no_grad():
            linear.weight += update.T if isinstance(linear, Conv1D) else update
        updates.append(update)
    return updates
