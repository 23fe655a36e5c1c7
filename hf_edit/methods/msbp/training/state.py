"""What a training run has come to: networks, normalisers, Adam, counters; to tensors and back, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_edit.methods.msbp.hypernet import networks_of, restore, tensors_of
from hf_edit.methods.msbp.stream import Transformer
from hf_edit.methods.msbp.training.config import HypernetConfig
from hf_edit.processes import Processes


COEFFICIENTS = ("log_step", "log_ridge")


@dataclass
class Counters:
    """How far a run is.

    Args:
        position: sequences done of the current epoch.
        batches: learned in all.
        updates: steps of Adam.
        stale: validations since the best one.
        best: its loss.
        unit: squared norm of the first batch's update before training.
        history: figures of the validations, in order.
    """

    epoch: int = 0
    position: int = 0
    batches: int = 0
    updates: int = 0
    stale: int = 0
    best: float | None = None
    unit: float = 1.0
    history: list[dict[str, Any]] = field(default_factory=list)


class State:
    """The networks under training with their optimiser.

    Args:
        sets: one for all steps or one for each, every one of them once.
        order: of the examples in the first epoch.
        generator: of all that is drawn from there on.
    """

    def __init__(
        self, sets: Sequence[Transformer], config: HypernetConfig, order: Tensor, generator: torch.Generator
    ) -> None:
        self.sets, self.order, self.generator, self._clip = sets, order, generator, config.clip
        self.counters = Counters()
        self.best: dict[str, Tensor] | None = None
        self.pending = 0
        named = [pair for network in networks_of(sets) for pair in network.named_parameters()]
        self.parameters: list[nn.Parameter] = [parameter for _, parameter in named]
        self.optimiser = torch.optim.Adam(
            [
                {"params": [p for name, p in named if name not in COEFFICIENTS], "lr": config.learning_rate},
                {"params": [p for name, p in named if name in COEFFICIENTS], "lr": config.coefficient_rate},
            ]
        )

    def update(self, processes: Processes) -> None:
        """One step of Adam with the mean of the gradients that came in since the last one, clipped once."""
        if not self.pending:
            return
        for parameter in self.parameters:
            if parameter.grad is None:  # processes must share the same tensors
                parameter.grad = torch.zeros_like(parameter)
            processes.add_up([parameter.grad])
            parameter.grad /= self.pending
        nn.utils.clip_grad_norm_(self.parameters, self._clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.pending = 0
        self.counters.updates += 1

    def keep_as_best(self) -> None:
        """Remember networks and normalisers as they are."""
        self.best = {name: tensor.cpu().clone() for name, tensor in tensors_of(self.sets).items()}

    def snapshot(self) -> dict[str, Tensor]:
        """All that the rest of the run depends on; nothing may be pending."""
        tensors = {f"net.{name}": tensor for name, tensor in tensors_of(self.sets).items()}
        tensors |= {f"best.{name}": tensor for name, tensor in (self.best or {}).items()}
        for i, parameter in enumerate(self.parameters):
            tensors |= {f"adam.{i}.{name}": value for name, value in self.optimiser.state[parameter].items()}
        counters = json.dumps(vars(self.counters), sort_keys=True).encode()
        rest = {"generator": self.generator.get_state(), "order": self.order}
        return {**tensors, **rest, "counters": torch.tensor(list(counters), dtype=torch.uint8)}

    def resume(self, kept: Mapping[str, Tensor]) -> None:
        """Undo `snapshot`."""
        restore(self.sets, _under(kept, "net."))
        self.best = _under(kept, "best.") or None
        for i, parameter in enumerate(self.parameters):
            mine = _under(kept, f"adam.{i}.")
            if mine:
                self.optimiser.state[parameter] = {
                    name: value.to(parameter.device if value.ndim else "cpu") for name, value in mine.items()
                }
        self.generator.set_state(kept["generator"])
        self.order = kept["order"]
        self.counters = Counters(**json.loads(bytes(kept["counters"].tolist())))

    def tensors(self) -> dict[str, Tensor]:
        """What is worth keeping, networks in fp32 on the CPU: the best where validation chose, else the last."""
        found = tensors_of(self.sets) if self.best is None else self.best
        return {
            name: tensor.cpu().to(tensor.dtype if ".normaliser." in name else torch.float32, copy=True)
            for name, tensor in found.items()
        }


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
