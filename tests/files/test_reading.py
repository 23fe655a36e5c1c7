"""Plain files only, of bounded size; sound safetensors only."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_edit.errors import PackError
from hf_edit.files.reading import (
    MAX_HEADER_BYTES,
    MAX_TENSOR_BYTES,
    PlainFolder,
    header_limit,
    read_tensors,
    write_tensors,
)


GOOD = write_tensors({"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4)})


def with_header(header: object, payload: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def test_tensors_are_read_back() -> None:
    tensors = read_tensors(GOOD, "x")
    assert torch.equal(tensors["a"], torch.arange(6.0).reshape(2, 3)) and torch.equal(tensors["b"], torch.arange(4))
    assert write_tensors(dict(reversed(tensors.items()))) == GOOD


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated"),
        (GOOD[:7], "truncated"),
        (GOOD[:40], "truncated"),
        (GOOD[:-1], "not a sound"),
        (GOOD + b"\0", "not a sound"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + GOOD[8:], "header of"),
        (struct.pack("<Q", 2**64 - 1) + GOOD[8:], "header of"),
        (struct.pack("<Q", 4) + b"\x80\x04K\x01", "not a sound"),
        (with_header([]), "not a sound"),
        (with_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4), "not a sound"),
        (with_header({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 0]}}), "not a sound"),
        (with_header({"a": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 1]}}, b"\0"), "not a sound"),
        (with_header({"a": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]}}, b"\0"), "not a sound"),
    ],
)
def test_unsound_tensors_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(PackError, match=message) as caught:
        read_tensors(data, "x.safetensors")
    assert "x.safetensors" in caught.value.message and caught.value.remedy


def test_a_header_is_bounded_by_the_tensors_that_there_may_be() -> None:
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    long = with_header({"__metadata__": {"x": "y" * (3 << 20)}, "a": empty})
    for most, refused in ((1, True), (2000, True), (3000, False), (None, False)):
        if refused:
            with pytest.raises(PackError, match=f"header of .* more than {header_limit(most)}"):
                read_tensors(long, "x", most)
        else:
            assert list(read_tensors(long, "x", most)) == ["a"]


def test_values_of_thousands_of_edits_are_read() -> None:
    layers, tokens, width = 4, 2000, 4096
    assert MAX_TENSOR_BYTES > 1000 * layers * tokens * width * 4
    entry = (
        '"10999.language_model.model.layers.47.mlp.down_proj.positions":{"dtype":"I64","shape":[123],"data_offsets":'
    )
    tensors = 2 * 11_000 * 16
    assert header_limit(tensors) > tensors * len(f"{entry}[123456789012,123456789012]}},")


@pytest.mark.parametrize(("limit", "said"), [("MAX_HEADER_BYTES", "a header"), ("MAX_TENSOR_BYTES", "a file")])
def test_what_would_not_be_read_is_not_written(limit: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"hf_edit.files.reading.{limit}", 100)
    with pytest.raises(PackError, match=f"2 tensors make {said} of .* more than the 100") as caught:
        write_tensors({"a": torch.zeros(100), "b": torch.zeros(4)})
    assert "values=False" in caught.value.remedy


@settings(deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255), st.booleans())
def test_no_damage_gives_anything_but_an_error_or_tensors(place: int, bits: int, truncate: bool) -> None:
    data = GOOD[:place] if truncate else GOOD[:place] + bytes([GOOD[place] ^ bits]) + GOOD[place + 1 :]
    try:
        read_tensors(data, "x")
    except PackError:
        pass


def test_plain_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"12345")
    assert PlainFolder(tmp_path).read("a.json") == b"12345"
    with pytest.raises(PackError, match="5 bytes, more than 4"):
        PlainFolder(tmp_path).read("a.json", limit=4)


def test_the_memory_taken_is_that_of_the_file_and_not_of_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"12345")
    assert PlainFolder(tmp_path).read("a.json", limit=1 << 60) == b"12345"


@pytest.mark.skipif(not os.path.isfile("/proc/self/status"), reason="no /proc here")
def test_a_file_longer_than_it_says_is_refused() -> None:
    with pytest.raises(PackError, match="more than the 0 bytes") as caught:
        PlainFolder(Path("/proc/self")).read("status")
    assert caught.value.remedy


def link(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "a.json").symlink_to(tmp_path / "secret")


def pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")


def folder(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()


def nothing(tmp_path: Path) -> None:
    del tmp_path


@pytest.mark.parametrize(
    ("make", "message"),
    [(link, "symbolic link"), (pipe, "not a plain file"), (folder, "not a plain file"), (nothing, "has no a.json")],
)
def test_anything_but_plain_files_is_refused(make, message: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(PackError, match=message) as caught:
        PlainFolder(tmp_path).read("a.json")
    assert caught.value.remedy


def test_links_of_a_cache_lead_only_into_the_cache(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1").write_bytes(b"inside")
    (tmp_path / "2").write_bytes(b"outside")
    (snapshot / "good.json").symlink_to("../../blobs/1")
    (snapshot / "bad.json").symlink_to("../../../2")
    pack = PlainFolder(snapshot, within=tmp_path / "repo")
    assert pack.read("good.json") == b"inside"
    with pytest.raises(PackError, match="symbolic link"):
        pack.read("bad.json")
    with pytest.raises(PackError, match="symbolic link"):
        PlainFolder(snapshot).read("good.json")


@pytest.mark.parametrize("name", ["adapter_model.bin", "x.pt", "y.PKL", "z.npz"])
def test_folders_with_pickles_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(PackError, match=name):
        PlainFolder(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="not a folder"):
        PlainFolder(tmp_path / "none")
