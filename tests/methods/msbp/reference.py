"""The hypernetwork family with several backward passes, written down plainly: whole forwards, dense matrices.

Each text runs alone and through every block, gradients come from an ordinary backward pass that computes those of the
weights too, statistics are recomputed from all rows so far, weights are really changed. Slow on purpose; the fast path
must equal it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_edit.methods.msbp.network import HyperNetwork
from hf_edit.prompting import Encoded


EPSILON = 2.0**-23
"""What is added to standard deviations: float32's epsilon."""


def reference_capture(
    model: PreTrainedModel, names: Sequence[str], texts: Sequence[Encoded]
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Keys (n, d_in), gradients of the summed loss with respect to outputs (n, d_out), losses (n,)."""
    keys: dict[str, list[Tensor]] = {name: [] for name in names}
    gradients: dict[str, list[Tensor]] = {name: [] for name in names}
    losses = []
    for text in texts:
        ids, predicting = torch.tensor([text.ids]), slice(text.answer_start - 1, len(text) - 1)
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}

        def keep(name: str, inputs: dict[str, Tensor] = inputs, outputs: dict[str, Tensor] = outputs) -> object:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                output.retain_grad()
                inputs[name], outputs[name] = args[0], output

            return model.get_submodule(name).register_forward_hook(hook)

        handles = [keep(name) for name in names]
        with torch.enable_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0]
            loss = F.cross_entropy(logits[predicting], ids[0, text.answer_start :], reduction="none")
            loss.sum().backward()
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
        model.zero_grad(set_to_none=True)
        for name in names:
            gradient = outputs[name].grad
            assert gradient is not None
            keys[name].append(inputs[name].detach().reshape(len(text), -1)[predicting])
            gradients[name].append(gradient.reshape(len(text), -1)[predicting])
        losses.append(loss.detach())
    return _stacked(keys), _stacked(gradients), torch.cat(losses)


def transformed(network: HyperNetwork, rows: Tensor, module: int) -> tuple[Tensor, Tensor]:
    """The hypernetwork block by block: z + scale * max(0, z A B + c) + shift."""
    z = rows
    for block in network.blocks:
        h = torch.maximum(z @ (block.A @ block.B) + block.bias, torch.zeros(()).to(z))
        z = z + block.scale[module] * h + block.shift[module]
    return z[:, : network.d_in], z[:, network.d_in :]


@dataclass
class Reference:
    """A model that learns in its own weights.

    Args:
        model: changed in place.
        names: edited linears, in the order of the blocks.
        method: `mend`, `ultraedit`, or another name for MALMEN's shift.
        ridge: lambda, where no network says it.
        networks: per step, (d_out, d_in) -> hypernetwork; none: the identity.
        own_statistics: each step of a batch has a normaliser of its own.
    """

    model: PreTrainedModel
    names: Sequence[str]
    method: str
    ridge: float
    networks: Sequence[Mapping[tuple[int, int], HyperNetwork]] | None = None
    own_statistics: bool = False
    seen: dict[tuple[int, tuple[int, int]], list[Tensor]] = field(default_factory=dict)
    protected: dict[str, Tensor] = field(default_factory=dict)
    update: dict[str, Tensor] = field(default_factory=dict)

    def protect(self, texts: Sequence[Encoded], weight: float) -> None:
        """Add weight * k k^T of the answer-predicting tokens, through the model as it is."""
        keys, _, _ = reference_capture(self.model, self.names, texts)
        for name, K in keys.items():
            self.protect_moment(name, K.T @ K, weight)

    def protect_moment(self, name: str, moment: Tensor, weight: float) -> None:
        self.protected[name] = self.protected.get(name, torch.zeros_like(moment)) + weight * moment

    @torch.no_grad()
    def step(self, number: int, texts: Sequence[Encoded], step_size: float) -> dict[str, Tensor]:
        """One backward pass and one shift of all linears; returns what it asked of the outputs, (n, d_out)."""
        keys, gradients, _ = reference_capture(self.model, self.names, texts)
        group = number if self.own_statistics else 0
        shapes = {name: (gradients[name].shape[1], keys[name].shape[1]) for name in self.names}
        rows = {name: torch.cat([keys[name], gradients[name]], dim=1) for name in self.names}
        for name in self.names:
            self.seen.setdefault((group, shapes[name]), []).append(rows[name])
        asked, shifts = {}, {}
        for name in self.names:
            shape, K = shapes[name], keys[name]
            every = torch.cat(self.seen[group, shape])
            if self.method == "ultraedit":
                std = every.std(dim=0) if len(every) > 1 else torch.zeros_like(every[0])
                normalised = (rows[name] - every.mean(dim=0)) / (std + EPSILON)
            else:
                normalised = rows[name] / (every.square().mean(dim=0).sqrt() + EPSILON)
            d_in = shape[1]
            pseudo_keys, pseudo_gradients = normalised[:, :d_in], normalised[:, d_in:]
            eta, ridge = step_size, self.ridge
            if self.networks is not None:
                network = self.networks[number][shape]
                module = [other for other in self.names if shapes[other] == shape].index(name)
                pseudo_keys, pseudo_gradients = transformed(network, normalised, module)
                eta = step_size * float(network.log_step[module].exp())
                ridge = float(network.log_ridge[module].exp())
            if self.method == "mend":
                asked[name] = -eta * pseudo_gradients
                shifts[name] = asked[name].T @ pseudo_keys
                continue
            against = normalised[:, :d_in] if self.method == "ultraedit" else K
            asked[name] = -eta * (against * pseudo_keys).sum(dim=1)[:, None] * pseudo_gradients
            Q = torch.eye(d_in).to(K) + self.protected.get(name, torch.zeros(d_in, d_in).to(K))
            shifts[name] = torch.linalg.solve(K.T @ K + ridge * Q, K.T @ asked[name]).T
        for name, shift in shifts.items():  # all at once: none of them sees another of this step
            module = self.model.get_submodule(name)
            module.weight += shift.T if isinstance(module, Conv1D) else shift  # type: ignore[operator]
            self.update[name] = self.update.get(name, torch.zeros_like(shift)) + shift
        return asked

    @torch.no_grad()
    def judged(self, texts: Sequence[Encoded]) -> tuple[list[float], list[bool]]:
        """Per text the mean loss of its answer's tokens, and whether each of them is the likeliest."""
        losses, right = [], []
        for text in texts:
            ids = torch.tensor([text.ids])
            logits = self.model(input_ids=ids, use_cache=False).logits[0, text.answer_start - 1 : -1]
            losses.append(float(F.cross_entropy(logits, ids[0, text.answer_start :])))
            right.append(bool((logits.argmax(dim=-1) == ids[0, text.answer_start :]).all()))
        return losses, right


def _stacked(parts: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat(list(rows)) for name, rows in parts.items()}
