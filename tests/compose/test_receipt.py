"""Receipts on disk, written by us and by others."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_edit.compose.merge import merge, unmerge
from hf_edit.compose.receipt import DIFFERENCE, PLAIN, MergeReceipt, coded
from hf_edit.errors import HfEditError, PackError
from hf_edit.files import strict_json
from tests.packs.make import make_pack
from tests.snapshots import changed, snapshot
from tests.tiny import tiny_model


NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def merged() -> tuple[Any, MergeReceipt]:
    model = tiny_model()
    return model, merge(model, make_pack(model))


def test_a_receipt_is_read_as_it_was_written(merged: tuple[Any, MergeReceipt], tmp_path: Path) -> None:
    _, receipt = merged
    receipt.save(tmp_path)
    assert sorted(path.name for path in (tmp_path / "merge_receipt").iterdir()) == [
        "before.safetensors",
        "receipt.json",
    ]
    again = MergeReceipt.load(tmp_path)
    assert (again.merges, again.weights) == (receipt.merges, receipt.weights)
    assert all(torch.equal(again.backup[name], receipt.backup[name]) for name in receipt.backup)
    once = [path.read_bytes() for path in sorted((tmp_path / "merge_receipt").iterdir())]
    again.save(tmp_path)
    assert [path.read_bytes() for path in sorted((tmp_path / "merge_receipt").iterdir())] == once


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_backup_is_whatever_is_smaller(dtype: torch.dtype) -> None:
    before = torch.randn(64, 64).to(dtype)
    near, far = (
        (before.float() * 1.001).to(dtype),
        torch.frombuffer(bytearray(os.urandom(64 * 64 * dtype.itemsize)), dtype=torch.uint8)
        .view(dtype)
        .reshape(64, 64),
    )
    for after, coding in ((near, DIFFERENCE), (far, PLAIN)):
        record, backup = coded(before, after)
        assert record.coding == coding
        assert backup.numel() * backup.element_size() <= record.bytes == before.numel() * dtype.itemsize
        receipt = MergeReceipt((), {"a.weight": record}, {"a.weight": backup})
        assert torch.equal(receipt.before("a.weight", after), before)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change receipt.json and put its digest right, as someone who means harm would."""
    path = folder / "merge_receipt" / "receipt.json"
    body = json.loads(path.read_bytes())
    body.pop("digest")
    change(body)
    path.write_bytes(strict_json.dumps({**body, "digest": hashlib.sha256(strict_json.dumps(body)).hexdigest()}))


def refilled(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change before.safetensors and put its digest right."""
    path = folder / "merge_receipt" / "before.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    rewritten(folder, lambda body: body.update(backup=hashlib.sha256(path.read_bytes()).hexdigest()))


def weight(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: rewritten(folder, lambda body: body["weights"][NAME].update(fields))


def renamed(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        rewritten(folder, lambda body: body["weights"].update({name: body["weights"].pop(NAME)}))
        refilled(folder, lambda tensors: tensors.update({name: tensors.pop(NAME)}))

    return change


def field(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: rewritten(folder, lambda body: body.update(fields))


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    return lambda folder: refilled(folder, lambda content: [change(content)] and None)


def file(name: str, change: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda folder: change(folder / "merge_receipt" / name) and None


def link_away(path: Path) -> None:
    target = path.parent.parent / "elsewhere"
    path.rename(target)
    path.symlink_to(target)


HOSTILE: dict[str, Callable[[Path], None]] = {
    "no receipt.json": file("receipt.json", Path.unlink),
    "no before.safetensors": file("before.safetensors", Path.unlink),
    "not JSON": file("receipt.json", lambda path: path.write_bytes(b"{")),
    "altered JSON": file("receipt.json", lambda p: p.write_bytes(p.read_bytes().replace(b"nearest", b"farthest"))),
    "truncated tensors": file("before.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-8])),
    "altered tensors": file("before.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x")),
    "a link": file("before.safetensors", link_away),
    "a pickle": file("weights.bin", lambda path: path.write_bytes(b"\x80")),
    "a newer format": field(format_version=2),
    "no format": field(format_version="1"),
    "no weights": field(weights=[]),
    "no merges": field(merges=None),
    "wrong digest of the backup": field(backup="0" * 64),
    "path as a name": renamed("../../weight"),
    "another module": renamed("model.layers.9.mlp.down_proj.weight"),
    "the embeddings": renamed("model.embed_tokens.weight"),
    "the same shape elsewhere": renamed("model.layers.3.mlp.down_proj.weight"),
    "negative shape": weight(shape=[-32, 56]),
    "huge shape": weight(shape=[1 << 40, 1 << 40]),
    "other shape": weight(shape=[56, 32]),
    "text as a shape": weight(shape="32"),
    "unknown dtype": weight(dtype="int8"),
    "other dtype": weight(dtype="bfloat16"),
    "unknown coding": weight(coding="pickle"),
    "plain for a difference": weight(coding="plain"),
    "digest before of another weight": weight(before="0" * 64),
    "digest after of another weight": weight(after="0" * 64),
    "no digest": weight(before="yes"),
    "an extra tensor": tensors(lambda content: content.update(more=torch.zeros(1))),
    "a missing tensor": tensors(lambda content: content.pop(NAME)),
    "a difference of something else": tensors(lambda c: c.update({NAME: torch.zeros(9, dtype=torch.uint8)})),
    "a difference of floats": tensors(lambda content: content.update({NAME: torch.zeros(9)})),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_receipts_are_refused_and_change_nothing(
    kind: str, merged: tuple[Any, MergeReceipt], tmp_path: Path
) -> None:
    model, receipt = merged
    receipt.save(tmp_path)
    HOSTILE[kind](tmp_path)
    before = snapshot(model)
    with pytest.raises(HfEditError) as caught:
        unmerge(model, tmp_path)
    assert caught.value.message and caught.value.remedy
    assert changed(before, snapshot(model)) == []
    unmerge(model, receipt)


def test_a_receipt_that_would_not_be_read_is_not_written(
    merged: tuple[Any, MergeReceipt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_edit.files.reading.MAX_TENSOR_BYTES", 100)
    with pytest.raises(PackError, match="more than the 100 that are read"):
        merged[1].save(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_header_beyond_the_weights_is_refused(merged: tuple[Any, MergeReceipt], tmp_path: Path) -> None:
    merged[1].save(tmp_path)
    path = tmp_path / "merge_receipt" / "before.safetensors"
    save_file(load_file(path), path, metadata={"x": "y" * (2 << 20)})
    with pytest.raises(PackError, match="more than"):
        MergeReceipt.load(tmp_path)


def test_a_folder_that_holds_something_else_is_not_written_over(
    merged: tuple[Any, MergeReceipt], tmp_path: Path
) -> None:
    (tmp_path / "merge_receipt").mkdir()
    (tmp_path / "merge_receipt" / "notes.txt").write_text("mine")
    with pytest.raises(PackError, match="notes.txt"):
        merged[1].save(tmp_path)
