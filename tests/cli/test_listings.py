"""`hf-edit methods` and `hf-edit models`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from hf_edit.methods import METHODS
from hf_edit.methods.anyedit.config import AnyEditConfig
from hf_edit.models.families import families
from tests.cli.conftest import Command, failed


def test_methods_lists_every_method(hf_edit: Command) -> None:
    shown = hf_edit("methods").stdout
    assert set(METHODS) <= set(shown.split())
    (default,) = [line for line in shown.splitlines() if "The default, with backend direct." in line]
    assert default.startswith("anyedit ")


def test_a_methods_settings_are_those_of_its_config(hf_edit: Command) -> None:
    shown = hf_edit("methods", "anyedit").stdout
    document = json.loads(hf_edit("methods", "anyedit", "--json").stdout)
    listed = {setting["name"]: setting for setting in document["anyedit"]["settings"]}
    for field in dataclasses.fields(AnyEditConfig):
        assert field.name in shown
        if field.name not in ("statistics", "unke", "direct", "join"):  # settings of their own
            assert listed[field.name]["help"] == field.metadata["help"]
            assert listed[field.name]["default"] == field.default
    assert {"statistics.tokens", "unke.rank", "direct.training.batch"} <= set(listed)
    assert not {"statistics", "unke", "direct"} & set(listed)
    assert listed["backend"]["choices"] == ["memit", "alphaedit", "unke", "direct"]


def test_an_unknown_method(hf_edit: Command) -> None:
    failed(hf_edit("methods", "magic"), "magic", "anyedit")


def test_models_lists_the_table(hf_edit: Command) -> None:
    assert set(json.loads(hf_edit("models", "--json").stdout)) == set(families())
    assert "gpt_neox" in hf_edit("models").stdout


def test_models_describes_one(hf_edit: Command, base: Path) -> None:
    document = json.loads(hf_edit("models", base, "--json").stdout)
    assert (document["family"], document["layers"], document["hidden_size"]) == ("llama", 4, 32)
    assert document["linears"][1] == {"name": "model.layers.1.mlp.down_proj", "d_out": 32, "d_in": 56}
    assert document["edited_by_default"]["anyedit"] == ["model.layers.2.mlp.down_proj"]
    assert len(document["edited_by_default"]["the default"]) > 1
    shown = hf_edit("models", base).stdout
    assert "model.layers.3.mlp.down_proj" in shown and "32 outputs x 56 inputs" in shown


def test_models_of_something_that_is_no_model(hf_edit: Command, tmp_path: Path) -> None:
    failed(hf_edit("models", tmp_path), "config.json")
