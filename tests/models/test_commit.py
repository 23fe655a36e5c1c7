"""The commit of the Hub's cache that a model's weights are of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from hf_edit.models.commit import cached_commit
from tests.tiny import tiny_model


NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with three commits, two of which have the same weights; `main` is the oldest of all."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--org--base"
    for age, (commit, seed) in enumerate([("c" * 40, 1), ("b" * 40, 0), ("a" * 40, 0)]):
        tiny_model(seed=seed).save_pretrained(folder / "snapshots" / commit, max_shard_size="20KB" if age else "1GB")
        os.utime(folder / "snapshots" / commit, (age, age))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c" * 40)
    return folder


def weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {NAME: tiny_model(seed=seed, dtype=dtype).get_parameter(NAME)}


def test_the_weights_decide(cache: Path) -> None:
    assert cached_commit("org/base", weights(seed=1)) == "c" * 40
    assert cached_commit("org/base", weights(seed=0)) == "a" * 40  # the newest
    assert cached_commit("org/base", weights(seed=0, dtype=torch.bfloat16)) == "a" * 40
    assert cached_commit("org/base", weights(seed=2)) is None
    (cache / "refs" / "main").write_text("b" * 40)
    assert cached_commit("org/base", weights(seed=0)) == "b" * 40


def test_what_cannot_be_told(cache: Path) -> None:
    assert cached_commit("org/other", weights()) is None
    assert cached_commit("org/base", {"model.other.weight": torch.ones(2, 2)}) is None
    for commit in ("a", "b"):
        for file in (cache / "snapshots" / (commit * 40)).glob("*.safetensors"):
            file.write_bytes(b"damaged")
    assert cached_commit("org/base", weights()) is None


def test_gpt2_leaves_out_the_first_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = tiny_model("gpt2")
    model.transformer.save_pretrained(tmp_path / "models--org--base" / "snapshots" / ("a" * 40))
    name = "transformer.h.0.mlp.c_proj.weight"
    assert cached_commit("org/base", {name: model.get_parameter(name)}) == "a" * 40
