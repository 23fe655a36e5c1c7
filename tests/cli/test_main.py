"""The command line as a whole: help, exit codes, errors."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import typer
from typer.testing import CliRunner

import hf_edit.cli.main as main
from hf_edit import __version__
from hf_edit.errors import HfEditError, HfEditWarning
from tests.cli.conftest import Command


VERBS = {"apply", "polish", "inspect", "verify", "locate", "models", "methods", "demo"}


def test_help_lists_the_verbs_and_the_exit_codes(hf_edit: Command) -> None:
    result = hf_edit("--help")
    assert result.exit_code == 0
    for word in (*VERBS, "Exit codes", "130"):
        assert word in result.output


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help(hf_edit: Command, verb: str) -> None:
    result = hf_edit(verb, "-h")
    assert result.exit_code == 0
    assert f"hf-edit {verb}" in result.output


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
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(raising(ZeroDivisionError()), ["verb"], catch_exceptions=False)


def test_the_console_script_exits_2_without_a_traceback() -> None:
    code = "import sys; from hf_edit.cli.main import main; sys.exit(main())"
    arguments = ["apply", "--model", "m", "--edits", "none.jsonl", "--out", "o"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
