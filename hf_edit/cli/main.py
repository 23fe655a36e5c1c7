"""`hf-edit`: the verbs together, and what becomes of errors.

Verbs import torch and the rest only when they run, so that `hf-edit --help` answers at once.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from hf_edit._version import __version__
from hf_edit.cli.apply import apply
from hf_edit.cli.audit import audit
from hf_edit.cli.conflicts import conflicts
from hf_edit.cli.convert import convert
from hf_edit.cli.demo.command import demo
from hf_edit.cli.diff import diff
from hf_edit.cli.inspect import inspect
from hf_edit.cli.locate import locate
from hf_edit.cli.merge import merge
from hf_edit.cli.methods import methods
from hf_edit.cli.models import models
from hf_edit.cli.polish import polish
from hf_edit.cli.pull import pull
from hf_edit.cli.push import push
from hf_edit.cli.revert import revert
from hf_edit.cli.sign import sign
from hf_edit.cli.stack import stack
from hf_edit.cli.stats import stats
from hf_edit.cli.train import train
from hf_edit.cli.unmerge import unmerge
from hf_edit.cli.verify import verify
from hf_edit.errors import HfEditError, HfEditWarning, visible


EXIT_CODES = (
    "Exit codes: 0 done; 1 a check of the demo did not hold, or a bug (with a traceback); "
    "2 something to put right in the command, the input files or the pack; 3 an audit found something; "
    "130 interrupted."
)
WRONG_INPUT = 2
INTERRUPTED = 130


class Verbs(TyperGroup):
    """The command group, with a user's mistakes told in two lines instead of a traceback, and warnings in one."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", HfEditWarning)
                warnings.showwarning = _tell
                return super().invoke(ctx)
        except HfEditError as error:
            _fail(error.message, error.remedy)
        except OSError as error:
            _fail(visible(str(error)), "Check that the path exists, that you may use it, and that the disk has room.")
        except KeyboardInterrupt:
            typer.echo(
                "\ninterrupted: run the same command again; `apply` and `train` go on from what is finished", err=True
            )
            raise typer.Exit(INTERRUPTED) from None


def _tell(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Advice to the user without the line of code it comes from; what libraries warn of is for developers."""
    if issubclass(category, HfEditWarning):
        typer.echo(visible(f"note: {message}"), err=True)


def _fail(message: str, remedy: str) -> None:
    typer.echo(f"error: {message}\nfix: {remedy}", err=True)
    raise typer.Exit(WRONG_INPUT)


app = typer.Typer(
    name="hf-edit",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hf-edit {__version__}")
        raise typer.Exit


@app.callback()
def hf_edit(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Teach a language model facts, as a LoRA adapter that plain transformers and peft open."""
    del version


for verb in (
    apply,
    train,
    polish,
    stack,
    revert,
    merge,
    unmerge,
    conflicts,
    diff,
    inspect,
    verify,
    convert,
    sign,
    audit,
    locate,
    models,
    push,
    pull,
    methods,
    demo,
):
    app.command()(verb)
app.add_typer(stats, name="stats")


def main() -> None:
    """Entry point of the console script."""
    app()
