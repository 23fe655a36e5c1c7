"""Folders are replaced as a whole or not at all, whatever the moment and whatever is there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hf_edit.errors import PackError
from hf_edit.files import atomic
from hf_edit.files.atomic import recover, write_directory


OLD, NEW = {"marker": b"old", "a": b"1"}, {"marker": b"new", "b": b"2"}


def write(path: Path, files: dict[str, bytes]) -> None:
    write_directory(path, files, marker="marker", known=lambda name: name in {"marker", "a", "b"})


def content(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    return request.param


def test_written_and_replaced(way: str, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "pack"
    write(target, OLD)
    assert content(target) == OLD
    os.chmod(target, 0o750)
    write(target, NEW)
    assert content(target) == NEW
    assert stat.S_IMODE(target.stat().st_mode) == 0o750
    assert os.listdir(target.parent) == ["pack"]


def test_this_system_exchanges_folders(tmp_path: Path) -> None:
    write(tmp_path / "a", OLD)
    write(tmp_path / "b", NEW)
    if not atomic._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("the file system of the temporary folder cannot")
    assert (content(tmp_path / "a"), content(tmp_path / "b")) == (NEW, OLD)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    write(tmp_path / "pack", NEW)
    assert content(tmp_path / "pack") == NEW


def test_a_link_to_a_pack_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "real", OLD)
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", NEW)
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == NEW


def make_foreign_file(target: Path) -> None:
    (target / "notes.txt").write_text("mine")


def make_git(target: Path) -> None:
    (target / ".git").mkdir()


def make_known_name_a_folder(target: Path) -> None:
    (target / "b").mkdir()


def make_known_name_a_link(target: Path) -> None:
    (target / "b").symlink_to("a")


def make_unmarked(target: Path) -> None:
    (target / "marker").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (make_foreign_file, "notes.txt"),
        (make_git, ".git"),
        (make_known_name_a_folder, "belong there: b"),
        (make_known_name_a_link, "belong there: b"),
        (make_unmarked, "no marker"),
    ],
)
def test_what_is_not_wholly_a_pack_is_not_replaced(spoil, message: str, tmp_path: Path) -> None:
    target = tmp_path / "pack"
    write(target, OLD)
    spoil(target)
    before = sorted(os.listdir(target))
    with pytest.raises(PackError, match=message):
        write(target, NEW)
    assert sorted(os.listdir(target)) == before
    assert os.listdir(tmp_path) == ["pack"]


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "pack").write_text("mine")
    with pytest.raises(PackError, match="is a file"):
        write(tmp_path / "pack", NEW)
    assert (tmp_path / "pack").read_text() == "mine"


@pytest.mark.parametrize("step", ["_write_synced", "_sync_folder", "_put_in_place"])
def test_a_failing_system_call_leaves_the_old_folder(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "pack", OLD)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, step, fail)
    with pytest.raises(PackError, match="No space left") as caught:
        write(tmp_path / "pack", NEW)
    assert caught.value.remedy
    assert content(tmp_path / "pack") == OLD
    assert os.listdir(tmp_path) == ["pack"]


def test_a_second_rename_that_fails_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "pack", OLD)
    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    rename = os.rename

    def fail_for_new(source: Path, target: Path) -> None:
        if str(source).endswith(".saving"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_for_new)
    with pytest.raises(PackError, match="Input/output"):
        write(tmp_path / "pack", NEW)
    assert content(tmp_path / "pack") == OLD
    assert os.listdir(tmp_path) == ["pack"]


def test_a_folder_left_aside_is_put_back(tmp_path: Path) -> None:
    write(tmp_path / "pack", OLD)
    write(tmp_path / "pack.more", NEW)
    os.rename(tmp_path / "pack", tmp_path / f".pack.{'0' * 16}.replaced")
    os.rename(tmp_path / "pack.more", tmp_path / f".pack.more.{'0' * 16}.replaced")
    recover(tmp_path / "pack")
    assert content(tmp_path / "pack") == OLD
    assert not (tmp_path / "pack.more").exists()


def test_leftovers_of_dead_writers_go_and_those_of_living_stay(tmp_path: Path) -> None:
    dead, living, foreign = (tmp_path / f".pack.{n}.saving" for n in ("0" * 16, "1" * 16, "other"))
    for folder in (dead, living, foreign):
        folder.mkdir()
    with atomic._open_folder(living) as descriptor:
        assert atomic._lock(descriptor)
        write(tmp_path / "pack", NEW)
        assert sorted(os.listdir(tmp_path)) == sorted([living.name, foreign.name, "pack"])
    write(tmp_path / "pack", OLD)
    assert sorted(os.listdir(tmp_path)) == sorted([foreign.name, "pack"])


def test_another_writer_does_not_sweep_away_what_is_not_locked_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, locked = atomic._lock, []

    def interrupted(descriptor: int | None) -> bool:
        if not locked:
            locked.append(descriptor)
            write(tmp_path / "pack", OLD)
        return lock(descriptor)

    monkeypatch.setattr(atomic, "_lock", interrupted)
    write(tmp_path / "pack", NEW)
    assert content(tmp_path / "pack") == NEW
    assert os.listdir(tmp_path) == ["pack"]


def test_a_place_behind_a_file_holds_no_folder(tmp_path: Path) -> None:
    (tmp_path / "me").write_text("a file")
    recover(tmp_path / "me" / "pack")
