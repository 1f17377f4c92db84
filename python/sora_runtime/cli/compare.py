"""`sora-bench compare`: what a clip costs on each GPU and as a hosted model, and from which volume a GPU is cheaper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sora_runtime.cli import estimate as option
from sora_runtime.cli.parse import parse_size
from sora_runtime.cli.plan_options import Json
from sora_runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from sora_runtime.cost.compare import Comparison


def _against(text: str, metavar: str) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Compared with")


Model = Annotated[str, typer.Argument(help="A name, card, bundle or checkpoint.", metavar="MODEL")]
Gpus = Annotated[list[str] | None, _against("May be repeated; default: all with a price.", "NAME")]
Prices = Annotated[list[str] | None, _against("USD per GPU-hour, a provider, a commitment, or GPU=X.", "X")]
Task = Annotated[str | None, _against("t2v or i2v; default: what the clip is.", "NAME")]
Match = Annotated[str, _against("Only hosted models whose row holds this.", "TEXT")]
Volume = Annotated[float | None, _against("Generated seconds a month, to add bills.", "S")]


def compare(  # noqa: PLR0913, PLR0917  (each option of the command is a parameter)
    model: Model,
    gpu: Gpus = None,
    price: Prices = None,
    task: Task = None,
    match: Match = "",
    volume: Volume = None,
    size: option.Size = None,
    frames: option.Frames = None,
    seconds: option.Seconds = None,
    fps: option.Fps = None,
    steps: option.Steps = None,
    guidance_scale: option.GuidanceScale = None,
    image: option.Image = False,
    precision: option.Precision = "bf16",
    engine: option.Engine = "diffusers",
    attention: option.Attention = None,
    step_reuse: option.StepReuse = None,
    assume: option.Assume = None,
    json: Json = False,
    csv: option.CsvFile = None,
) -> None:
    """Compare what a clip of MODEL costs on each GPU with every hosted model, and find where renting pays."""
    if json and csv is not None:
        raise InvalidRequest("--json and --csv are both given; use one")
    from datetime import UTC, datetime

    from sora_runtime.cost.compare import Question
    from sora_runtime.cost.compare import compare as answer
    from sora_runtime.cost.estimate import Ask

    width, height = parse_size(size) if size else (None, None)
    common, own = parse_prices(price or [])
    ask = Ask(
        model,
        width=width,
        height=height,
        num_frames=frames,
        seconds=seconds,
        fps=fps,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        image=image,
        precision=precision,
        engine=engine,
        attention=attention,
        step_reuse=step_reuse,
        price=common,
        assumptions=option.parse_assumptions(assume or []),
    )
    today = datetime.now(UTC).date().isoformat()
    _print(answer(Question(ask, today, tuple(gpu or ()), own, task, match, volume)), csv, json=json)


def parse_prices(texts: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """Reads X, once, and GPU=X as often as it is given.

    Returns:
        The price of every GPU, None if there is none, and those of single ones by name.

    Raises:
        InvalidRequest: the price of every GPU, or of one, is given twice.
    """
    common: str | None = None
    own: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        given = own.get(name) if equals else common
        if given is not None:
            raise InvalidRequest(f"--price {text} is given beside {given}; give one for each GPU, as GPU=X")
        if equals:
            own[name] = value
        else:
            common = value
    return common, own


def _print(found: Comparison, csv: Path | None, *, json: bool) -> None:
    if json:
        from sora_runtime.cli.compare_record import record_of

        typer.echo(option.dumps(record_of(found)))
    elif csv is None:
        from sora_runtime.cli.compare_tables import print_comparison

        print_comparison(found)
    else:
        from sora_runtime.cli.compare_record import comparison_csv

        text = comparison_csv(found)
        if csv == option.STDOUT:
            typer.echo(text.encode(), nl=False)
        else:
            from sora_runtime.output import write_text

            write_text(csv, text)
