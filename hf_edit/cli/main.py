"""`hf-edit`: the verbs together, and what becomes of errors.

Verbs import torch and the rest only when they run, so that `hf-edit --help` answers at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from hf_edit._version import __version__
from hf_edit.cli.apply import apply
from hf_edit.cli.audit import audit
from hf_edit.cli.bench import bench
from hf_edit.cli.conflicts import conflicts
from hf_edit.cli.convert import convert
from hf_edit.cli.demo.command import demo
from hf_edit.cli.diff import diff
from hf_edit.cli.evaluate import evaluate
from hf_edit.cli.inspect import inspect
from hf_edit.cli.locate import locate
from hf_edit.cli.merge import merge
from hf_edit.cli.methods import methods
from hf_edit.cli.models import models
from hf_edit.cli.polish import polish
from hf_edit.cli.pull import pull
from hf_edit.cli.push import push
from hf_edit.cli.report import report
from hf_edit.cli.revert import revert
from hf_edit.cli.sign import sign
from hf_edit.cli.stack import stack
from hf_edit.cli.stats import stats
from hf_edit.cli.train import train
from hf_edit.cli.unmerge import unmerge
from hf_edit.cli.verify import verify
from hf_edit.errors import HfEditError, HfEditWarning, visible
from hf_edit.processes import is_first


EXIT_CODES = (
    "Exit codes: 0 done; 1 a check of the demo did not hold, or a bug (with a traceback); "
    "2 something to put right in the command, the input files or the pack; 3 an audit found something; "
    "4 an audit found nothing, but could not examine everything; 130 interrupted."
)
WRONG_INPUT = 2
INTERRUPTED = 130
VERBS: dict[Callable[..., None], str] = {
    apply: "hf-edit apply --model HuggingFaceTB/SmolLM2-135M-Instruct --edits edits.jsonl --out packs/lamp",
    train: "hf-edit train --model MODEL --edits zsre.json --edits-format zsre --format plain --out net",
    polish: "hf-edit polish packs/lamp --model MODEL --out packs/polished",
    stack: "hf-edit stack packs/a packs/b --model MODEL --out packs/both",
    revert: "hf-edit revert packs/both fact-17 --model MODEL --out packs/less",
    merge: "hf-edit merge packs/lamp --model MODEL --out merged",
    unmerge: "hf-edit unmerge merged --out base",
    conflicts: "hf-edit conflicts packs/a packs/b --model MODEL",
    diff: "hf-edit diff packs/lamp packs/polished",
    inspect: "hf-edit inspect packs/lamp",
    verify: "hf-edit verify packs/lamp --model MODEL",
    convert: "hf-edit convert packs/lamp --layout all-layers --model MODEL --out packs/served",
    sign: "hf-edit sign packs/lamp --private-key key.pem",
    evaluate: "hf-edit evaluate packs/lamp --model MODEL --save",
    audit: "hf-edit audit packs/lamp --model MODEL",
    bench: "hf-edit bench bench.toml --model MODEL --out bench",
    report: "hf-edit report bench --html bench.html --png pictures",
    locate: "hf-edit locate --model MODEL --edits edits.jsonl",
    models: "hf-edit models HuggingFaceTB/SmolLM2-135M-Instruct",
    push: "hf-edit push packs/lamp me/lamp --tag v1",
    pull: "hf-edit pull me/lamp --revision v1 --out packs/lamp",
    methods: "hf-edit methods emsedit",
    demo: "hf-edit demo --workdir build/demo",
}
"""Each verb, in the order of `--help`, with the example that its own help ends with."""


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
        except BrokenPipeError:
            raise  # whoever reads has enough, as head has: click ends without a word
        except OSError as error:
            _fail(visible(str(error)), "Check that the path exists, that you may use it, and that the disk has room.")
        except (typer.Exit, typer.Abort):
            raise  # which are RuntimeErrors, as what devices say of their memory is
        except (MemoryError, RuntimeError) as error:
            from hf_edit.models.memory import ran_out

            if not ran_out(error):
                raise
            said = f": {visible(str(error))}" if str(error) else "."
            _fail(
                f"The memory ran out{said}",
                "Use a larger device, load the model in bfloat16, or ask for less at once.",
            )
        except KeyboardInterrupt:
            typer.echo(
                "\ninterrupted: run the same command again; "
                "`apply`, `polish`, `train`, `stats collect` and `bench` go on from what is finished",
                err=True,
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
    if issubclass(category, HfEditWarning) and is_first():
        typer.echo(visible(f"note: {message}", keep=""), err=True)


def _fail(message: str, remedy: str) -> None:
    typer.echo(f"error: {message}\nfix: {remedy}", err=True)
    raise typer.Exit(WRONG_INPUT)


app = typer.Typer(
    name="hf-edit",
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
    rich_markup_mode="markdown",
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


for verb, example in VERBS.items():
    app.command(epilog=f"Example: {example}")(verb)
app.add_typer(stats, name="stats")


def main() -> None:
    """Entry point of the console script."""
    app()
