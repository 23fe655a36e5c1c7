"""The heat map."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_edit.errors import ConfigError
from hf_edit.methods.locating.effects import EditEffects, Effects
from hf_edit.methods.locating.picture import draw_effects


def effects(n_layers: int) -> Effects:
    classes = (2, 3, 4)
    edit = EditEffects("e", "x", "yes", ("t",) * 3, classes, 0.7, 0.1, torch.randn(3, n_layers))
    return Effects("mlp", 3, (edit,))


@pytest.mark.parametrize("n_layers", [1, 4, 80])
def test_a_picture_is_drawn(n_layers: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "map.png"
    draw_effects(effects(n_layers), path, proposed=[0])
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert width > height > 300
    draw_effects(effects(n_layers), path)
    assert path.read_bytes() != data  # other effects, nothing proposed


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="needs the package matplotlib") as caught:
        draw_effects(effects(4), tmp_path / "map.png")
    assert "hf-edit[plots]" in caught.value.remedy
    assert not (tmp_path / "map.png").exists()


def test_tracing_does_not_load_matplotlib() -> None:
    code = "import sys, hf_edit.methods.locating.picture; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
