"""Imports point one way: the order that ARCHITECTURE.md states, read from there, holds for every module.

An import inside a function counts as well, and so does `import_module("hf_edit...")`. One that must look upward at run
time says why on its line: `# upward: <reason>`. Imports under TYPE_CHECKING are for type checkers and do not count.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_edit


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_edit"
REASON = re.compile(r"# upward: \S+")


def stated_order(text: str) -> dict[str, int]:
    """Rank of each part of the package, lowest first, from the paragraph of the document that orders them by `<`."""
    paragraph = next(p for p in text.split("\n\n") if re.match(r"`[a-z_, ]+` <", p))
    groups = [re.findall(r"\w+", group) for group in paragraph.split("<")]
    return {name: rank for rank, group in enumerate(groups) for name in group}


def part_of(module: str) -> str:
    """`hf_edit.models.editable` -> `models`."""
    return module.split(".")[1]


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of everything of hf_edit that the module imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func) and node.args:
            first = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            if isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)
        yield from imported(node)


def violations(source: str, module: str, order: dict[str, int]) -> list[str]:
    """What in `source` looks up the order, or sideways between parts of equal rank."""
    here, lines = part_of(module), source.splitlines()
    found = []
    for line, name in imported(ast.parse(source)):
        if not name.startswith("hf_edit.") or part_of(name) in (here, "_version") or REASON.search(lines[line - 1]):
            continue
        if part_of(name) not in order:
            found.append(f"{module}:{line} imports {name}, which ARCHITECTURE.md does not place")
        elif order[part_of(name)] >= order[here]:
            found.append(f"{module}:{line} imports {name} from above")
    return found


def modules() -> dict[str, Path]:
    """Every module of the package but its front door, which looks everywhere."""
    files = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
    return {name: path for name, path in files.items() if name not in ("hf_edit.__init__", "hf_edit._version")}


ORDER = stated_order((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_downward(module: str) -> None:
    assert part_of(module) in ORDER, f"ARCHITECTURE.md does not place {part_of(module)}"
    assert violations(modules()[module].read_text(encoding="utf-8"), module, ORDER) == []


def test_the_order_is_read_from_the_document() -> None:
    assert stated_order("text\n\n`a, b` < `c` <\n`d`.\n\nmore") == {"a": 0, "b": 0, "c": 1, "d": 2}
    assert ORDER["errors"] < ORDER["solvers"] < ORDER["models"] < ORDER["methods"] < ORDER["packs"] < ORDER["cli"]


@pytest.mark.parametrize(
    "source",
    [
        "from hf_edit.cli.main import main",
        "import hf_edit.packs.pack",
        "from hf_edit import packs",
        "def f():\n    from hf_edit.api import edit",
        "def f(name):\n    return import_module(f'hf_edit.compose.{name}')",
        "from hf_edit.prompting import PromptFormat\nfrom hf_edit.methods import METHODS",
        "from hf_edit.unplaced import thing",
    ],
)
def test_a_planted_violation_is_found(source: str) -> None:
    assert len(violations(source, "hf_edit.models.planted", ORDER)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from hf_edit.errors import HfEditError",
        "from hf_edit.models.families import families",
        "from torch import nn",
        "if TYPE_CHECKING:\n    from hf_edit.packs.pack import EditPack",
        "def f():\n    from hf_edit.compose import stack  # upward: a method on the pack is how users call it",
    ],
)
def test_what_is_allowed_is_not_found(source: str) -> None:
    assert violations(source, "hf_edit.models.planted", ORDER) == []


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_the_package_and_the_command_line_loads_no_torch() -> None:
    code = """
        import sys, hf_edit, hf_edit.cli.main
        print([name for name in ("torch", "transformers", "peft", "numpy") if name in sys.modules])
    """
    assert run(code) == "[]"


def test_every_public_name_can_be_had() -> None:
    assert hf_edit.__all__ == sorted(hf_edit.__all__)
    assert dir(hf_edit) == hf_edit.__all__
    for name in hf_edit.__all__:
        assert getattr(hf_edit, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = hf_edit.nonsense
