"""The fuzzer finds nothing, and would find something."""

from __future__ import annotations

import json
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_edit.packs.pack import EditPack
from tests.packs import fuzzing
from tests.packs.make import make_pack
from tests.tiny import tiny_model


ROOT = Path(__file__).parents[2]


def test_some_seconds_of_damage_give_nothing_but_clear_errors() -> None:
    """In a process of its own, as an audit hook stays for ever."""
    command = [sys.executable, str(ROOT / "benchmarks/fuzz_packs.py"), "--minutes", "0.1", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    tried = re.search(r"(\d+) packs in", done.stdout)
    assert tried is not None and int(tried[1]) > 10


def test_damage_is_repeated_by_its_seed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_pack(tiny_model()).save_pretrained(tmp_path / name)
        for number in range(30):
            fuzzing.damage(tmp_path / name, random.Random(number))
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


FAULTS: dict[str, Callable[[Path], object]] = {
    "ZeroDivisionError": lambda path: 1 / 0,
    "read /etc/hostname": lambda path: Path("/etc/hostname").read_bytes(),
    "wrote .*outside": lambda path: (path.parents[1] / "outside").write_text("x"),
    "subprocess.Popen": lambda path: subprocess.run(["true"], check=True),
    "pickle.find_class": lambda path: pickle.loads(pickle.dumps(Path)),
}
"""What is said of it -> what happens where packs are read."""


def plant_faults(folder: Path) -> dict[str, str]:
    """What the fuzzer says of each fault; in a process of its own."""
    read, said = EditPack.from_pretrained, {}
    for number, (name, fault) in enumerate(FAULTS.items()):

        def from_pretrained(path: str, fault: Callable[[Path], object] = fault) -> EditPack:
            if Path(path).name == "pack":
                fault(Path(path))
            return read(path)

        EditPack.from_pretrained = staticmethod(from_pretrained)  # type: ignore[method-assign, assignment]
        (folder / str(number)).mkdir()
        try:
            fuzzing.fuzz(folder / str(number), 0, lambda tried: tried > 200)
        except AssertionError as error:
            said[name] = str(error)
    return said


def test_planted_faults_are_found(tmp_path: Path) -> None:
    script = (
        "import json, sys; from tests.packs.test_fuzz import *; print(json.dumps(plant_faults(Path(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in FAULTS if not re.search(name, said.get(name, ""))] == []


def test_what_steers_a_terminal_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pack(tiny_model()).save_pretrained(tmp_path / "pack")
    assert fuzzing.opened(tmp_path / "pack", tiny_model(), tmp_path) == "opened"
    monkeypatch.setattr(fuzzing, "inspect", lambda path: print("\x1b[2J"))
    with pytest.raises(AssertionError, match="steers a terminal"):
        fuzzing.opened(tmp_path / "pack", tiny_model(), tmp_path)
    assert EditPack.from_pretrained(tmp_path / "again").edits
