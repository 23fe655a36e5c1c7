"""A hypernetwork on disk: same bytes, whole or absent, and nothing hostile gets in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from hf_edit.errors import PackError
from hf_edit.files.reading import PlainFolder
from hf_edit.hypernets.folder import CARD, WEIGHTS, read, save, to_files
from hf_edit.hypernets.manifest import FORMAT, MANIFEST, Base, Linear, Manifest
from hf_edit.prompting import Prompting


def manifest(**changes: Any) -> Manifest:
    whole = Manifest(
        format=FORMAT,
        hf_edit_version="0",
        method="emsedit",
        steps=2,
        ranks=(3, 1),
        blocks=1,
        base=Base("org/base", "llama", "float32", "0123"),
        prompt_format=Prompting("plain", "4567"),
        linears=(Linear("a", 1, 4, 6), Linear("b", 2, 4, 6), Linear("c", 3, 2, 6)),
        config={"seed": 0},
        figures={"edits": 9, "batches": 3, "validation": [{"batches": 3, "loss": 0.5, "ES": 90.0, "LS": None}]},
        versions={"torch": "2"},
    )
    return replace(whole, **changes)


def tensors(of: Manifest) -> dict[str, Tensor]:
    return {name: torch.ones(shape, dtype=getattr(torch, dtype)) for name, (shape, dtype) in of.tensors().items()}


def written(path: Path, of: Manifest | None = None) -> Path:
    one = of or manifest()
    save(path, to_files(one, tensors(one)))
    return path


def test_there_and_back(tmp_path: Path) -> None:
    there, found = read(PlainFolder(written(tmp_path / "net")))
    assert replace(there, files={}) == manifest()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors(manifest()).items())
    again = written(tmp_path / "again")
    for name in (MANIFEST, WEIGHTS, CARD):
        assert (again / name).read_bytes() == (tmp_path / "net" / name).read_bytes()


def test_shapes_are_counted_by_linear() -> None:
    announced = manifest().tensors()
    assert announced["0.4x6.blocks.0.A"] == ((10, 3), "float32")
    assert announced["1.4x6.blocks.0.B"] == ((1, 10), "float32")
    assert announced["0.4x6.log_step"] == ((2,), "float32")
    assert announced["0.2x6.blocks.0.scale"] == ((1, 8), "float32")
    assert announced["1.2x6.normaliser.mean"] == ((8,), "float64")
    assert len(announced) == 2 * 2 * 10


def test_one_that_is_there_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    written(tmp_path / "net")
    written(tmp_path / "net", manifest(ranks=(2,)))
    assert read(PlainFolder(tmp_path / "net"))[0].ranks == (2,)
    (tmp_path / "net" / "notes.txt").write_text("mine")
    with pytest.raises(PackError, match="notes.txt"):
        written(tmp_path / "net")


def test_the_card_says_what_it_is_for(tmp_path: Path) -> None:
    card = (written(tmp_path / "net") / CARD).read_text()
    assert "base_model: org/base" in card and "--method emsedit --format plain" in card
    assert "layers (blocks 1 to 3)" in " ".join(card.split())
    assert "| 3 | 0.5 | 90 | - | - |" in card and "Trained on 9 edits in 3 batches" in card
    local = manifest(base=Base(None, "llama", "float32", "0"), figures={})
    assert "base_model" not in (written(tmp_path / "local", local) / CARD).read_text()
    for layers, said in (((3, 7, 11), "3, 7, 11"), ((7,), "7")):
        linears = tuple(Linear(f"l{layer}", layer, 4, 6) for layer in layers)
        card = (written(tmp_path / said, manifest(linears=linears)) / CARD).read_text()
        assert f"layers (blocks {said})" in " ".join(card.split())


def forged(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Other tensors, with a manifest that lists them."""
    found = tensors(manifest())
    change(found)
    data = safetensors.torch.save(found)
    (path / WEIGHTS).write_bytes(data)
    document = json.loads((path / MANIFEST).read_text())
    document["files"][WEIGHTS] = sha256(data).hexdigest()
    (path / MANIFEST).write_text(json.dumps(document))


NAME = "0.4x6.blocks.0.B"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(NAME), "has no '0.4x6.blocks.0.B'"),
        (lambda t: t.update(more=torch.ones(1)), "has a tensor 'more'"),
        (lambda t: t.update({NAME: torch.ones(3, 9)}), r"of shape \(3, 9\), not float32 of shape \(3, 10\)"),
        (lambda t: t.update({NAME: torch.ones(3, 10, dtype=torch.float64)}), "is float64"),
        (lambda t: t[NAME].fill_(float("nan")), "NaN or infinity"),
        (lambda t: t["0.4x6.normaliser.squares"].fill_(-1), "is negative"),
        (lambda t: t["0.4x6.normaliser.count"].fill_(-1), "is negative"),
    ],
)
def test_tensors_that_are_not_those_announced(change: Callable[..., None], said: str, tmp_path: Path) -> None:
    forged(written(tmp_path), change)
    with pytest.raises(PackError, match=said):
        read(PlainFolder(tmp_path))
    found = tensors(manifest())
    change(found)
    with pytest.raises(PackError, match=said):
        to_files(manifest(), found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "has the format 2"),
        ({"steps": 0, "ranks": [1]}, "announces 0 steps"),
        ({"steps": 10**9}, "1000000000 steps"),
        ({"ranks": [1, 1, 1]}, "3 networks for 2 steps"),
        ({"ranks": [0]}, r"the ranks \[0\]"),
        ({"blocks": 10**9}, "1000000000 blocks"),
        ({"linears": []}, "no linears"),
        ({"linears": [{"name": "a", "layer": 0, "d_out": 1 << 60, "d_in": 1}]}, "d_out"),
        ({"linears": [{"name": "a", "layer": 0, "d_out": 2, "d_in": 1}] * 2}, "a linear twice"),
        ({"base": None}, "base"),
        ({"method": 3}, "method"),
        ({"files": {}}, "is not the file that"),
    ],
)
def test_manifests_that_cannot_be(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = written(tmp_path) / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PackError, match=said):
        read(PlainFolder(tmp_path))


def test_damaged_files(tmp_path: Path) -> None:
    weights = written(tmp_path) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(PackError, match="is not the file that"):
        read(PlainFolder(tmp_path))
    weights.unlink()
    with pytest.raises(PackError, match="has no hypernet.safetensors"):
        read(PlainFolder(tmp_path))
    (tmp_path / "network.bin").write_bytes(b"x")
    with pytest.raises(PackError, match="can run code"):
        PlainFolder(tmp_path)
