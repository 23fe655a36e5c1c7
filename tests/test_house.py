"""What the repository promises about itself."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

import hf_edit
from hf_edit.edits import EditSet


ROOT = Path(__file__).parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_written_once() -> None:
    assert metadata.version("hf-edit") == hf_edit.__version__
    assert re.search(rf"^## {re.escape(hf_edit.__version__)}", read("CHANGELOG.md"), re.MULTILINE)
    written = [p for p in (ROOT / "hf_edit").rglob("*.py") if f'"{hf_edit.__version__}"' in p.read_text("utf-8")]
    assert [p.name for p in written] == ["_version.py"]
    assert 'dynamic = ["version"]' in read("pyproject.toml")


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("hf_edit", "py.typed"),
        ("hf_edit.models", "families.toml"),
        ("hf_edit.cli.demo", "edits.jsonl"),
        ("hf_edit.cli.demo", "open_pack.py"),
    ],
)
def test_package_data_is_there(package: str, name: str) -> None:
    assert resources.files(package).joinpath(name).is_file()


def test_every_data_file_is_of_a_kind_that_is_packaged() -> None:
    packaged = {".py", ".jsonl", ".md", ".toml", ".typed"}
    files = [p for p in (ROOT / "hf_edit").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {p.suffix for p in files} <= packaged


def test_the_readme_names_both_commands_and_a_page_every_verb() -> None:
    from hf_edit.cli.main import app

    text, page = read("README.md"), read("docs/command-line.md")
    assert "make demo" in text and "make test" in text and "git clone" in text
    for command in app.registered_commands:
        assert f"hf-edit {command.callback.__name__}" in page  # type: ignore[union-attr]


def test_what_the_readme_points_to_exists() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", read("README.md")):
        assert (ROOT / link).exists(), link


def test_make_shows_its_targets() -> None:
    shown = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "quality", "style", "bench", "help"):
        assert re.search(rf"^\s+make {target}\s+\S", shown, re.MULTILINE), target


def test_constraints_pin_every_dependency_exactly() -> None:
    lines = [line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][\w.]*", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    needed = {re.split(r"[<>=!;\[ ]", r)[0].lower() for r in metadata.requires("hf-edit") or ()}
    assert needed - pinned <= {"tomli", "hf-edit"}  # tomli: only below Python 3.11


def test_the_demo_teaches_a_fact_a_correction_and_a_long_answer() -> None:
    edits = EditSet.from_jsonl(ROOT / "hf_edit/cli/demo/edits.jsonl")
    assert len(edits) == 3
    assert all(len(edit.paraphrases) == 1 for edit in edits)
    assert sum(len(edit.locality) for edit in edits) == 2
    assert max(len(edit.target.split()) for edit in edits) > 100


def test_the_example_edits_are_valid() -> None:
    assert len(EditSet.from_jsonl(ROOT / "examples/edits.jsonl")) >= 2


@pytest.mark.parametrize("script", ["hf_edit/cli/demo/open_pack.py", "examples/plain_transformers.py"])
def test_scripts_that_open_packs_do_not_know_hf_edit(script: str) -> None:
    assert not re.search(r"^\s*(import|from) hf_edit", read(script), re.MULTILINE)


@pytest.mark.parametrize("script", ["hf_edit/cli/demo/open_pack.py", "examples/plain_transformers.py"])
def test_scripts_say_how_they_are_used(script: str) -> None:
    done = subprocess.run([sys.executable, str(ROOT / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("usage: ")
