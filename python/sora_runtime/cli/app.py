"""The entry point of `sora-bench`: its commands, and what errors and signals look like to a shell."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from sora_runtime import __version__
from sora_runtime.errors import BudgetExceeded, Cancelled, InvalidRequest, SoraError

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_BUDGET = 3
_EXITS = {InvalidRequest: EXIT_USAGE, BudgetExceeded: EXIT_BUDGET}


class Signalled(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised so that it cleans up exactly as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class ReportingGroup(TyperGroup):
    """Turns what a command raises into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, Cancelled) as error:
            code = error.exit_code if isinstance(error, Signalled) else 128 + signal.SIGINT
            _stop("interrupted", code)
        except SoraError as error:
            code = next((code for kind, code in _EXITS.items() if isinstance(error, kind)), EXIT_FAILURE)
            _stop(f"error: {' '.join(str(error).split())}", code)


def _stop(line: str, code: int) -> NoReturn:
    typer.echo(line, err=True)
    raise typer.Exit(code) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sora-bench {__version__}")
        raise typer.Exit


_MAKE, _PRICE = "Make clips", "Know the price"
# Each command: under which heading it is listed, and whether it does anything without arguments. It lies in the module
# of its name.
_COMMANDS = {
    "run": (_MAKE, False),
    "build": (_MAKE, False),
    "inspect": (_MAKE, False),
    "check": (_MAKE, False),
    "calibrate-reuse": (_MAKE, False),
    "frontier": (_MAKE, False),
    "engines": (_MAKE, True),
    "doctor": (_MAKE, True),
    "estimate": (_PRICE, False),
    "compare": (_PRICE, False),
    "plan": (_PRICE, False),
    "explore": (_PRICE, True),
    "claims": (_PRICE, True),
    "validate": (_PRICE, True),
    "calibrate": (_PRICE, True),
    "catalogue": (_PRICE, False),
}


def _sora_bench(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    """Make clips with compiled video diffusion transformers and see what each one costs."""


def command_line(*names: str) -> typer.Typer:
    """The program with these commands; with all of them, if none is named.

    Only they are imported and their options read: of all commands that takes longer than the arithmetic of an estimate.
    """
    app = typer.Typer(
        cls=ReportingGroup,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_sora_bench)
    for name in names or _COMMANDS:
        panel, runs_bare = _COMMANDS[name]
        attribute = name.replace("-", "_")
        command = getattr(import_module(f"sora_runtime.cli.{attribute}"), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=panel)
        else:
            app.command(name, no_args_is_help=not runs_bare, rich_help_panel=panel)(command)
    return app


def _raise_signalled(number: int, _frame: FrameType | None) -> NoReturn:
    raise Signalled(number)


def main() -> None:
    """Run `sora-bench`; exit codes: 0 ok, 1 failure, 2 bad request, 3 out of budget, 128 + n signal n."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP: leave it so
            signal.signal(number, _raise_signalled)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A prompt may hold what the terminal's encoding lacks; that must not end the program.
            stream.reconfigure(errors="replace")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looking for them reads every installed package
    first = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    command_line(*[first] if first in _COMMANDS else [])(prog_name="sora-bench")


if __name__ == "__main__":
    main()
