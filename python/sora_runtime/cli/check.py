"""`sora-bench check`: compares a bundle with what it was made from and holds it to its error budget."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sora_runtime.cli.build import export_packages
from sora_runtime.errors import EngineError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sora_export.check import CheckResult, Measure


def check(
    bundle: Annotated[str, typer.Argument(help="A bundle folder or a shipped bundle's name.", metavar="BUNDLE")],
    prompts: Annotated[
        Path | None, typer.Option(help="Clips to compare, one prompt a line; default: four.", metavar="FILE")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each clip.", metavar="N", min=1)] = None,
    adherence: Annotated[
        int, typer.Option(help="Prompts of wan-pocket's score, in both precisions; 0: none.", metavar="N", min=0)
    ] = 240,
    json: Annotated[bool, typer.Option("--json", help="As JSON.", metavar="")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on the way.", metavar="")] = False,
) -> None:
    """Measure BUNDLE part by part against torch and clip by clip against fp32; fails over budget.

    What is found is written into its bundle.json, but for a bundle that ships with the package.
    """
    from sora_runtime.bundle import find_bundle, is_shipped

    folder = find_bundle(bundle)
    progress: Callable[[str], None] = (lambda _: None) if quiet else (lambda line: typer.echo(line, err=True))
    with export_packages("check"):
        from sora_export.check import PROMPTS, check_bundle
        from sora_export.trajectories import read_prompts

        texts = PROMPTS if prompts is None else tuple(prompt.text for prompt in read_prompts(prompts))
        result = check_bundle(
            folder,
            prompts=texts,
            num_inference_steps=steps,
            adherence_prompts=adherence,
            record=not is_shipped(folder),
            progress=progress,
        )
    if json:
        typer.echo(json_format.dumps(result.record(), indent=2))
    else:
        from sora_runtime.cli.tables import print_all

        print_all(_tables(result))
    broken = result.broken()
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise EngineError(f"{bundle} is over its error budget ({broken[0]}{more}); build it in a higher precision")


def _tables(result: CheckResult) -> Iterator[RenderableType]:
    from sora_runtime.cli.tables import columns, facts

    names = ("graph", "relative L2", "budget", "")
    yield columns(names, [(name, *_cells(m, "{:.1e}")) for name, m in result.parts.items()], numbers=set(names[1:3]))
    if result.frames:
        rows = [
            (prompt, _number(clip["psnr"].value), f"{clip['ssim'].value:.3f}", _verdict(clip["psnr"]))
            for prompt, clip in result.frames.items()
        ]
        names = ("clip against fp32", "PSNR dB", "SSIM", "")
        yield columns(names, rows, numbers=set(names[1:3]))
    if result.adherence:
        names = ("adherence less fp32's", "points", "budget", "")
        rows = [(name, f"{m.value:+.1%}", f"{m.budget:+.0%}", _verdict(m)) for name, m in result.adherence.items()]
        yield columns(names, rows, numbers=set(names[1:3]))
    count = len(result.broken())
    yield facts([("verdict", "within budget" if not count else f"{count} over budget")])


def _cells(measure: Measure, form: str) -> tuple[str, str, str]:
    budget = "none" if measure.budget is None else form.format(measure.budget)
    return form.format(measure.value), budget, _verdict(measure)


def _number(value: float) -> str:
    return f"{value:.1f}" if value != float("inf") else "identical"


def _verdict(measure: Measure) -> str:
    return "" if measure.budget is None else "ok" if measure.holds else "OVER"
