"""Every block of code in the README and in docs/ runs, in order, as a reader would run it.

The Hub of the pages is the loopback Hub, on which a tiny model goes by the name of theirs, and defaults are lowered
(`tests/quick.py`). Python blocks of a page share one namespace; a bash block is run by bash, and what it calls
`hf-edit` is the command line in this process. A block that cannot run here says why in the line above it:

    <!-- not run: needs vLLM -->

and one that may end with another exit code than 0 names it:

    <!-- exit code 2: shows what is refused -->
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from hf_edit.cli.main import app
from tests.loopback_hub import REAL_CLIENT, LoopbackHub, loopback_hub  # noqa: F401
from tests.quick import quicken, save_tiny_base


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
LANGUAGES = {"python", "bash", "text", "toml", ""}
NOT_RUN = {
    "README.md": 2,
    "adding-a-model-family.md": 1,
    "measuring.md": 1,
    "quickstart.md": 1,
    "serving.md": 3,
    "thousands-of-edits.md": 1,
}
"""Page -> blocks that say why they are not run: one more is a decision."""

pytestmark = [
    REAL_CLIENT,
    pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning"),  # a tiny random model learns little
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # of PEFT
]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Args:
        line: of the fence.
        comment: what an HTML comment in the line above says.
    """

    page: str
    line: int
    language: str
    code: str
    comment: str | None

    @property
    def not_run(self) -> str | None:
        """Why it is not run; None for one that is, empty for one that says nothing."""
        match = re.fullmatch(r"not run:?(.*)", self.comment or "", re.DOTALL)
        return match and match[1].strip()

    @property
    def exit_codes(self) -> set[int]:
        match = re.fullmatch(r"exit code (\d+(?: or \d+)*): \S.*", self.comment or "", re.DOTALL)
        return set(map(int, match[1].split(" or "))) if match else {0}


def blocks(text: str, page: str) -> Iterator[Block]:
    """The fenced blocks of a page in order."""
    fences = re.compile(r"(?:^<!-- (?P<comment>.*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
    for found in fences.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        yield Block(page, line, found["language"], found["code"], found["comment"])


def blocks_of(page: Path) -> list[Block]:
    return list(blocks(page.read_text(encoding="utf-8"), page.name))


class CommandLine:
    """Bash with an `hf-edit` that is answered by this process, so that no block waits for imports."""

    CLIENT = textwrap.dedent("""\
        #!{python} -S
        import json, os, socket, sys
        with socket.socket(socket.AF_UNIX) as server:
            server.connect({address!r})
            server.sendall(json.dumps([sys.argv[1:], os.getcwd()]).encode())
            server.shutdown(socket.SHUT_WR)
            code, out, err = json.load(server.makefile())
        print(out, end="")
        print(err, end="", file=sys.stderr)
        sys.exit(code)
        """)

    def __init__(self, folder: str, server: socket.socket) -> None:
        self._folder, self._server, address = folder, server, f"{folder}/socket"
        server.bind(address)
        server.listen()
        server.settimeout(0.02)
        client = Path(folder, "hf-edit")
        client.write_text(self.CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o755)

    def run(self, code: str) -> tuple[int, str]:
        """Exit code and all output of a bash block."""
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", code],
                env={**os.environ, "PATH": f"{self._folder}:{os.environ['PATH']}"},
                stdout=output,
                stderr=output,
            )
            while process.poll() is None:
                self._answer()
            output.seek(0)
            return process.returncode, output.read()

    def _answer(self) -> None:
        try:
            client, _ = self._server.accept()
        except TimeoutError:
            return
        with client:
            arguments, folder = json.load(client.makefile())
            assert Path(folder) == Path.cwd()
            result = CliRunner().invoke(app, arguments, catch_exceptions=False, prog_name="hf-edit")
            client.sendall(json.dumps([result.exit_code, result.stdout, result.stderr]).encode())


@pytest.fixture
def command_line() -> Iterator[CommandLine]:
    # a short path: addresses of sockets are
    with tempfile.TemporaryDirectory(prefix="docs") as folder, socket.socket(socket.AF_UNIX) as server:
        yield CommandLine(folder, server)


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def reader(hub: LoopbackHub, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples in it, where a reader is called `me` on a Hub that has the model."""
    quicken(monkeypatch)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # made once, for the Hub of that time
    hub.upload(MODEL, tiny_base)
    place = tmp_path / "reader"
    shutil.copytree(ROOT / "examples", place / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs(page: Path, reader: Path, command_line: CommandLine) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    torch.set_num_threads(1)
    for block in blocks_of(page):
        if block.not_run is None:
            run(block, namespace, command_line)


def run(block: Block, namespace: dict[str, Any], command_line: CommandLine) -> None:
    if block.language == "python":
        # lines of a traceback are those of the page
        exec(compile("\n" * block.line + block.code, block.page, "exec"), namespace)
    elif block.language == "bash":
        code, output = command_line.run(block.code)
        assert code in block.exit_codes, f"{block.page}:{block.line} ended with {code}\n{output}"


def test_blocks_that_are_not_run_say_why_and_are_counted() -> None:
    found = [block for page in PAGES for block in blocks_of(page)]
    assert {block.language for block in found} <= LANGUAGES
    assert [f"{block.page}:{block.line}" for block in found if block.not_run == ""] == []
    assert Counter(block.page for block in found if block.not_run) == NOT_RUN


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_exists(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([\w-]+))?\)", page.read_text(encoding="utf-8")):
        there = page.parent / target if target else page
        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_index_names_every_page() -> None:
    readme = PAGES[0].read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in readme] == []


PLANTED = """
<!-- not run: needs a GPU -->
```bash
nvidia-smi
```

<!-- not run -->
```python
1 / 0
```
```python
x = 1

assert x == 2
```
<!-- exit code 2 or 3: it is wrong -->
```bash
exit 2
```
"""


def test_how_blocks_are_read() -> None:
    first, second, third, fourth = blocks(PLANTED, "page.md")
    assert (first.language, first.line, first.not_run, first.code) == ("bash", 3, "needs a GPU", "nvidia-smi\n")
    assert second.not_run == ""
    assert (third.language, third.not_run, third.exit_codes) == ("python", None, {0})
    assert (fourth.not_run, fourth.exit_codes) == (None, {2, 3})


def test_a_block_that_fails_is_found(command_line: CommandLine) -> None:
    *_, python, bash = blocks(PLANTED, "page.md")
    with pytest.raises(AssertionError) as raised:
        run(python, {}, command_line)
    assert raised.traceback[-1].lineno + 1 == PLANTED.splitlines().index("assert x == 2") + 1
    run(bash, {}, command_line)
    assert command_line.run("hf-edit --version && hf-edit verify none")[0] == 2
    assert command_line.run("false | cat")[0] == 1
