"""`sora-bench calibrate-reuse`: learns how much step reuse a bundle bears, and stores it there with what is lost."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sora_runtime.cli.parse import parse_size
from sora_runtime.cli.run_options import ReusePolicy

if TYPE_CHECKING:
    from sora_runtime.reuse_record import ReuseCalibration


def _setting(text: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Setting", **more)


def _policy(text: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Policy", **more)


def calibrate_reuse(  # noqa: PLR0913, PLR0917  (each option of the command is a parameter)
    bundle: Annotated[str, typer.Argument(help="A bundle folder or a shipped bundle's name.", metavar="BUNDLE")],
    prompts: Annotated[
        Path, typer.Option(help="One prompt a line; behind a tab the picture it begins with.", metavar="FILE")
    ],
    policy: Annotated[
        list[ReusePolicy] | None, _policy("May be repeated; default: easycache.", show_default=False)
    ] = None,
    evaluations_share: Annotated[float, _policy("The best quality at this share of the evaluations.", "X")] = 0.5,
    target_psnr: Annotated[float | None, _policy("Instead: the fewest evaluations at this mean PSNR.", "DB")] = None,
    order: Annotated[
        int | None, _policy("Of the Taylor series of an output; default: 1 for taylorseer.", "0|1|2", min=0, max=2)
    ] = None,
    residual: Annotated[bool, _policy("Reuse output less input, as EasyCache's paper does.", "")] = False,
    warm_up: Annotated[int, _policy("Rows that are always evaluated first.", "N", min=1)] = 3,
    most_in_a_row: Annotated[int, _policy("Rows reused between two evaluations; 0: any.", "N", min=0)] = 0,
    unconditional_every: Annotated[
        int, _policy("Of the evaluated rows, how many share one unconditional branch.", "N", min=1)
    ] = 1,
    steps: Annotated[int | None, _setting("Inference steps.", "N")] = None,
    solver: Annotated[str | None, _setting("Another one than the model's own.", "NAME")] = None,
    guidance_scale: Annotated[float | None, _setting("1 is none.", "X")] = None,
    size: Annotated[str | None, _setting("In pixels.", "WIDTHxHEIGHT")] = None,
    num_frames: Annotated[int | None, _setting("Frames of a clip.", "N")] = None,
    threads: Annotated[int | None, typer.Option(help="Default: one for every core.", metavar="N")] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.", metavar="")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on the way.", metavar="")] = False,
) -> None:
    """Learn for BUNDLE, one number of steps, solver and size which steps may be reused; --step-reuse then uses it."""
    from sora_export.trajectories import read_prompts
    from sora_runtime.reuse_calibration import Calibrator, ClipAsk, Goal, store
    from sora_runtime.runtime import Runtime
    from sora_runtime.sampling import StepReuse, default_order

    goal = Goal(target_psnr, evaluations_share)
    bases = [
        StepReuse(
            each.value,
            order=default_order(each.value) if order is None else order,
            residual=residual,
            warm_up=warm_up,
            most_in_a_row=most_in_a_row,
            unconditional_every=unconditional_every,
        )
        for each in policy or [ReusePolicy.easycache]
    ]
    width, height = parse_size(size) if size else (None, None)
    fields = {
        "num_inference_steps": steps,
        "solver": solver,
        "guidance_scale": guidance_scale,
        "width": width,
        "height": height,
        "num_frames": num_frames,
    }
    progress: Callable[[str], None] = (lambda _: None) if quiet else (lambda line: typer.echo(line, err=True))
    clips = [ClipAsk(prompt.text, prompt.image) for prompt in read_prompts(prompts)]
    with Runtime.load(bundle, num_threads=threads) as runtime:
        calibrator = Calibrator(runtime, clips, fields, progress)
        found = []
        for base in bases:
            found.append(calibrator.search(base, goal))
            store(runtime.bundle, found[-1])  # each at once: what is learnt stays if a later one fails
    if json:
        typer.echo(json_format.dumps([each.model_dump(mode="json") for each in found], indent=2))
    elif not quiet:
        _print(found)


def _print(found: list[ReuseCalibration]) -> None:
    from sora_runtime.cli.tables import columns, facts, print_all

    rows = []
    for each in found:
        quality, settings = each.quality, each.settings
        same = quality.psnr_mean is None or quality.psnr_min is None
        rows.append(
            (
                settings.policy,
                f"{settings.threshold:.4g}" if settings.threshold else "",
                f"{quality.evaluations:.1f}",
                f"{quality.all_evaluations}",
                "identical" if same else f"{quality.psnr_mean:.1f}",
                "" if same else f"{quality.psnr_min:.1f}",
                f"{quality.ssim_mean:.3f}",
            )
        )
    names = ("policy", "threshold", "evaluations", "without", "PSNR dB", "lowest", "SSIM")
    print_all(
        [
            facts([("calibrated for", str(found[0].key)), ("prompts", str(found[0].quality.prompts))]),
            columns(names, rows, numbers=set(names[1:])),
        ]
    )
