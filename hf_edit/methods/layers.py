"""Which MLP output maps a method edits."""

from __future__ import annotations

from collections.abc import Sequence

from hf_edit.errors import ConfigError
from hf_edit.models.editable import EditableLinear, EditableModel


def mlp_outputs(model: EditableModel, layers: Sequence[int], *, together: bool = True) -> list[EditableLinear]:
    """The MLP output maps of these layers.

    Args:
        together: one target is spread over them; else each is changed in its own right.

    Raises:
        ConfigError: a layer the model does not have, or several where a norm makes spreading meaningless.
    """
    for layer in layers:
        if not 0 <= layer < model.n_layers:
            raise ConfigError(
                f"Layer {layer} does not exist: the model has {model.n_layers} blocks.",
                f"Choose layers from 0 to {model.n_layers - 1}.",
            )
    if together and len(layers) > 1 and not model.writes_residual:
        raise ConfigError(
            f"{len(layers)} layers were given, but in this model ({model.family.name}) a norm stands between the "
            "MLP's output map and the residual stream, so a target cannot be spread over layers.",
            "Choose one layer.",
        )
    return [model.linears[layer] for layer in layers]
