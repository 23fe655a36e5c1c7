from __future__ import annotations

import pytest

from hf_edit.errors import ConfigError
from hf_edit.methods.layers import mlp_outputs
from hf_edit.models.editable import EditableModel
from tests.tiny import tiny_model


def test_maps_come_in_the_order_given() -> None:
    view = EditableModel.of(tiny_model())
    assert [linear.layer for linear in mlp_outputs(view, (0, 3))] == [0, 3]


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_does_not_exist(layer: int) -> None:
    with pytest.raises(ConfigError, match=f"Layer {layer} does not exist: the model has 4 blocks"):
        mlp_outputs(EditableModel.of(tiny_model()), (layer,))


def test_no_spreading_behind_a_norm() -> None:
    view = EditableModel.of(tiny_model("gemma2"))
    assert len(mlp_outputs(view, (2,))) == 1
    with pytest.raises(ConfigError, match="2 layers were given"):
        mlp_outputs(view, (1, 2))
