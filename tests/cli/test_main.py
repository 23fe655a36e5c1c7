"""The command line as a whole: help, exit codes, errors."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

import hf_edit.cli.main as main
from hf_edit import __version__
from hf_edit.errors import HfEditError, HfEditWarning
from tests.cli.conftest import Command


def walked(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every verb with the words that call it, those of groups too."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from walked(inner, (*path, name))
    else:
        yield path, command


COMMANDS = dict(walked(typer.main.get_command(main.app)))


def test_help_lists_the_verbs_and_the_exit_codes(hf_edit: Command) -> None:
    result = hf_edit("--help")
    assert result.exit_code == 0
    for word in (*{words[0] for words in COMMANDS}, "Exit codes", "130"):
        assert word in result.output


def test_help_keeps_what_stands_in_brackets(hf_edit: Command) -> None:
    assert "[default: anyedit, backend direct]" in hf_edit("apply", "--help").stdout
    assert "dataset:NAME:CONFIG" in hf_edit("stats", "collect", "--help").stdout


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_verb_has_help_with_an_example_that_can_be_parsed(hf_edit: Command, words: tuple[str, ...]) -> None:
    result = hf_edit(*words, "-h")
    assert result.exit_code == 0
    command = f"hf-edit {' '.join(words)}"
    assert command in result.output
    example = COMMANDS[words].epilog.removeprefix("Example: ")
    assert example.startswith(command)
    assert f"Example: {example}" in result.output
    COMMANDS[words].make_context(words[-1], shlex.split(example)[1 + len(words) :])  # raises for options that are not


@pytest.mark.parametrize(
    ("typed", "offered"), [("hf-edit sta", ["stack", "stats"]), ("hf-edit stack --pref", ["--prefer"])]
)
def test_what_is_typed_is_completed(
    hf_edit: Command, monkeypatch: pytest.MonkeyPatch, typed: str, offered: list[str]
) -> None:
    monkeypatch.setenv("_HF_EDIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    assert hf_edit().stdout.split() == offered


def test_completion_can_be_had(hf_edit: Command) -> None:
    assert {"--install-completion", "--show-completion"} <= set(hf_edit("--help").output.split())


def test_version(hf_edit: Command) -> None:
    assert hf_edit("--version").output == f"hf-edit {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-verb"],
        ["--no-such-option"],
        ["apply"],
        ["apply", "--model", "m", "--edits", "e", "--out", "o", "--limit", "0"],
        ["verify", "pack"],
    ],
)
def test_a_usage_error_exits_2(hf_edit: Command, arguments: list[str]) -> None:
    result = hf_edit(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def raising(error: BaseException) -> typer.Typer:
    app = typer.Typer(cls=main.Verbs)

    @app.command()
    def verb() -> None:
        raise error

    @app.command()
    def other() -> None:
        """With two commands typer keeps the group."""

    return app


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (HfEditError("seven is too many.", "Use six."), 2, "error: seven is too many.\nfix: Use six.\n"),
        (PermissionError(13, "Permission denied", "packs"), 2, "error: [Errno 13] Permission denied: 'packs'\nfix: "),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            2,
            "error: The memory ran out: CUDA out of memory. Tried",
        ),
        (MemoryError(), 2, "error: The memory ran out.\nfix: "),
        (KeyboardInterrupt(), 130, "interrupted: run the same command again"),
    ],
)
def test_what_becomes_of_an_error(error: BaseException, code: int, said: str) -> None:
    result = CliRunner().invoke(raising(error), ["verb"])
    assert result.exit_code == code
    assert said in result.stderr
    assert result.stdout == ""


def test_a_warning_of_ours_is_a_note_and_others_stay_silent() -> None:
    app = typer.Typer(cls=main.Verbs)

    @app.command()
    def verb() -> None:
        warnings.simplefilter("always")
        warnings.warn("few tokens", HfEditWarning, stacklevel=1)
        warnings.warn("old argument", DeprecationWarning, stacklevel=1)

    app.command()(raising)
    assert CliRunner().invoke(app, ["verb"]).stderr == "note: few tokens\n"


def test_a_bug_keeps_its_traceback() -> None:
    for bug in (ZeroDivisionError(), RuntimeError("shapes differ")):
        with pytest.raises(type(bug)):
            CliRunner().invoke(raising(bug), ["verb"], catch_exceptions=False)


def first_words(output: str) -> list[str]:
    """What stands before the colon of each line: packages that are imported may have said something too."""
    return [line.partition(":")[0] for line in output.splitlines()]


def test_the_console_script_exits_2_without_a_traceback() -> None:
    code = "import sys; from hf_edit.cli.main import main; sys.exit(main())"
    arguments = ["apply", "--model", "m", "--edits", "none.jsonl", "--out", "o"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error" in first_words(done.stderr) and "Traceback" not in done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="waits at a named pipe")
def test_ctrl_c_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Interrupted where it waits for its edits: exit code 130, one line, nothing half written."""
    os.mkfifo(tmp_path / "edits.jsonl")
    # a shell that runs the tests in the background has its children ignore the signal
    heeded = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heeded}; from hf_edit.cli.main import main; main()"
    arguments = ["apply", "--model", "m", "--edits", tmp_path / "edits.jsonl", "--out", tmp_path / "out"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with open(tmp_path / "edits.jsonl", "w"):  # opens once the other end does
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "interrupted" in first_words(err) and "run the same command again" in err and "Traceback" not in err
    assert out == "" and not (tmp_path / "out").exists()


@pytest.mark.skipif(shutil.which("hf") is None or shutil.which("hf-edit") is None, reason="needs both scripts")
def test_hf_runs_it_as_its_extension(tmp_path: Path) -> None:
    """`hf edit` is what `hf extensions install OWNER/hf-edit` leaves behind: a manifest that names the script."""
    manifest = {
        "owner": "owner",
        "repo": "hf-edit",
        "repo_id": "owner/hf-edit",
        "short_name": "edit",
        "executable_path": shutil.which("hf-edit"),
        "type": "python",
        "installed_at": "2026-01-01T00:00:00+00:00",
    }
    folder = tmp_path / ".local/share/hf/extensions/hf-edit"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    settings = {"HOME": str(tmp_path), "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_OFFLINE": "1"}

    def hf(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["hf", *arguments], env={**os.environ, **settings}, capture_output=True, text=True, check=False
        )

    assert hf("edit", "--version").stdout == f"hf-edit {__version__}\n"
    assert hf("edit", "no-such-verb").returncode == 2  # its exit code comes through


def test_a_reader_that_has_enough_is_no_mistake() -> None:
    code = "import sys; from hf_edit.cli.main import main; sys.exit(main())"
    for arguments in (["methods"], ["methods", "--json"]):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.close()
        _, said = process.communicate(timeout=60)
        assert "error" not in first_words(said) and "Traceback" not in said
