"""Intermediate results: found again under the same key and context, whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_edit.errors import ConfigError
from hf_edit.methods import checkpoints
from hf_edit.methods.checkpoints import FolderCheckpoints, NoCheckpoints


TENSORS = {
    "positions": torch.tensor([3, 9]),
    "deltas": torch.arange(8.0).reshape(2, 4).T,
    "losses": torch.tensor([0.5], dtype=torch.float64),
}


def test_what_was_saved_is_found_bit_for_bit(tmp_path: Path) -> None:
    FolderCheckpoints(tmp_path / "new" / "folder", "base").save("key", TENSORS)
    found = FolderCheckpoints(tmp_path / "new" / "folder", "base").load("key")
    assert found is not None and found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_another_key_or_context_finds_nothing(tmp_path: Path) -> None:
    FolderCheckpoints(tmp_path, "base").save("key", TENSORS)
    assert FolderCheckpoints(tmp_path, "base").load("other") is None
    assert FolderCheckpoints(tmp_path, "other base").load("key") is None
    assert FolderCheckpoints(tmp_path / "none", "base").load("key") is None


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 64])
def test_a_file_that_cannot_be_read_is_not_there_and_can_be_replaced(tmp_path: Path, content: bytes) -> None:
    kept = FolderCheckpoints(tmp_path, "base")
    kept.save("key", TENSORS)
    next(tmp_path.iterdir()).write_bytes(content)
    assert kept.load("key") is None
    kept.save("key", TENSORS)
    assert kept.load("key") is not None


def test_a_save_that_fails_half_way_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = FolderCheckpoints(tmp_path, "base")
    kept.save("key", TENSORS)

    def half(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        kept.save("key", {"other": torch.ones(1)})
    found = kept.load("key")
    assert found is not None and found.keys() == TENSORS.keys()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be kept in .*file"):
        FolderCheckpoints(file, "base").save("key", TENSORS)


def test_no_checkpoints_keep_nothing() -> None:
    kept = NoCheckpoints()
    kept.save("key", TENSORS)
    assert kept.load("key") is None
