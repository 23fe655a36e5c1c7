"""PEFT knows sparse adapters once hf_edit is imported, and says what is missing where it is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.sparse.make import saved
from tests.tiny import tiny_model


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


OPEN = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, pack = sys.argv[1:]
for way in (
    lambda: AutoModelForCausalLM.from_pretrained(base).load_adapter(pack),
    lambda: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), pack),
    lambda: AutoModelForCausalLM.from_pretrained(pack),
):
    try:
        way()
        print("opened")
    except KeyError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and a sparse pack of it."""
    path = tmp_path_factory.mktemp("sparse")
    tiny_model().save_pretrained(path / "base")
    saved(AutoModelForCausalLM.from_pretrained(path / "base"), path / "pack")
    return path / "base", path / "pack"


def test_without_hf_edit_the_error_says_what_to_install(folders: tuple[Path, Path]) -> None:
    told = run(OPEN, *folders).stdout.splitlines()
    assert len(told) == 3
    assert all("pip install hf-edit" in line and "import hf_edit" in line for line in told)


HOOKED = """
import sys, importlib.util
before = list(sys.meta_path)
import hf_edit
assert len(sys.meta_path) == len(before) + 1
assert "peft" not in sys.modules and "torch" not in sys.modules
assert importlib.util.find_spec("peft").name == "peft" and "peft" not in sys.modules  # as others look for it
import peft
assert not any("hf_edit" in repr(finder) for finder in sys.meta_path), sys.meta_path
assert peft.__spec__.loader.get_filename("peft") == peft.__file__
"""


@pytest.mark.parametrize("first", [HOOKED, "import peft, hf_edit"])
def test_importing_hf_edit_is_enough_in_either_order(first: str, folders: tuple[Path, Path]) -> None:
    """And the hook that waits for PEFT loads nothing, hides nothing and leaves nothing behind."""
    done = run(f"{first}\n{OPEN}", *folders)
    assert done.stdout.split() == ["opened"] * 3, done.stderr


def test_a_peft_that_cannot_be_registered_with_is_imported_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "__init__.py").write_text("there = True\n")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import hf_edit, peft; assert peft.there"
    done = run(code, tmp_path)
    assert done.returncode == 0 and "Sparse packs cannot be opened with the installed PEFT" in done.stderr
    done = run(
        "import sys; sys.modules['peft'] = None\nimport hf_edit\ntry:\n import peft\nexcept ImportError: print(1)"
    )
    assert done.returncode == 0, done.stderr
