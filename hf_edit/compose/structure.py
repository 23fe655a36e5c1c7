"""The structure of a model, all but the values of its tensors, to put back when a change of it fails half way."""

from __future__ import annotations

from typing import Any

from torch import nn


class Structure:
    """Which modules, parameters, hooks, flags and adapters a model has now.

    Tensors are kept by reference and not copied: whoever uses this must not write into them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.training = {module: module.training for module in model.modules()}
        self._attributes = [
            (module, dict(vars(module)), [(c, c.copy()) for c in vars(module).values() if _is_container(c)])
            for module in model.modules()
        ]
        self._trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore(self, kind: type[nn.Module] = nn.Module) -> None:
        """Put everything back in the modules of a kind, the very same objects in the very same places."""
        for module, attributes, containers in self._attributes:
            if isinstance(module, kind):
                vars(module).clear()
                vars(module).update(attributes)
                for container, content in containers:
                    container.clear()
                    container.extend(content) if isinstance(container, list) else container.update(content)
        self.restore_trainable()

    def restore_trainable(self) -> None:
        """Put `requires_grad` back of the parameters that were there."""
        for parameter, flag in self._trainable:
            parameter.requires_grad_(flag)


def _is_container(value: Any) -> bool:
    return isinstance(value, (dict, list, set))
