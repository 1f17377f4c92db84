"""The entry point of `sora-bench`: its commands, and what errors and signals look like to a shell."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from sora_runtime import __version__
from sora_runtime.cli.build import build
from sora_runtime.cli.calibrate import calibrate
from sora_runtime.cli.calibrate_reuse import calibrate_reuse
from sora_runtime.cli.catalogue import catalogue_app
from sora_runtime.cli.check import check
from sora_runtime.cli.claims import claims
from sora_runtime.cli.compare import compare
from sora_runtime.cli.engines import engines
from sora_runtime.cli.estimate import estimate
from sora_runtime.cli.explore import explore
from sora_runtime.cli.inspect import inspect
from sora_runtime.cli.plan import plan
from sora_runtime.cli.run import run
from sora_runtime.cli.validate import validate
from sora_runtime.errors import Cancelled, InvalidRequest, SoraError

EXIT_FAILURE = 1
EXIT_USAGE = 2


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
            code = EXIT_USAGE if isinstance(error, InvalidRequest) else EXIT_FAILURE
            _stop(f"error: {' '.join(str(error).split())}", code)


def _stop(line: str, code: int) -> NoReturn:
    typer.echo(line, err=True)
    raise typer.Exit(code) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sora-bench {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=ReportingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_MAKE, _PRICE = "Make clips", "Know the price"
app.command(no_args_is_help=True, rich_help_panel=_MAKE)(run)
app.command(no_args_is_help=True, rich_help_panel=_MAKE)(build)
app.command(no_args_is_help=True, rich_help_panel=_MAKE)(inspect)
app.command(no_args_is_help=True, rich_help_panel=_MAKE)(check)
app.command(no_args_is_help=True, rich_help_panel=_MAKE)(calibrate_reuse)
app.command(rich_help_panel=_MAKE)(engines)
app.command(no_args_is_help=True, rich_help_panel=_PRICE)(estimate)
app.command(no_args_is_help=True, rich_help_panel=_PRICE)(compare)
app.command(no_args_is_help=True, rich_help_panel=_PRICE)(plan)
app.command(rich_help_panel=_PRICE)(explore)
app.command(rich_help_panel=_PRICE)(claims)
app.command(rich_help_panel=_PRICE)(validate)
app.command(rich_help_panel=_PRICE)(calibrate)
app.add_typer(catalogue_app, name="catalogue", rich_help_panel=_PRICE)


@app.callback()
def sora_bench(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    """Make clips with compiled video diffusion transformers and see what each one costs."""


def _raise_signalled(number: int, _frame: FrameType | None) -> NoReturn:
    raise Signalled(number)


def main() -> None:
    """Run `sora-bench`; exit codes: 0 ok, 1 failure, 2 bad request, 128 + n stopped by signal n."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP: leave it so
            signal.signal(number, _raise_signalled)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A prompt may hold what the terminal's encoding lacks; that must not end the program.
            stream.reconfigure(errors="replace")
    app(prog_name="sora-bench")


if __name__ == "__main__":
    main()
