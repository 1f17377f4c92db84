"""`sora-bench estimate`: what a clip takes and costs before anything runs, for one clip or a file of them."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sora_runtime.cli.parse import parse_size
from sora_runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from sora_runtime.cost.batch import Answer, Batch
    from sora_runtime.cost.estimate import Ask, Estimate

STDOUT = Path("-")


def _clip(text: str, metavar: str) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Clip")


def _run(text: str, metavar: str) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="How it runs")


def _money(text: str, metavar: str) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Money")


Model = Annotated[str | None, typer.Argument(help="A name, card, bundle or checkpoint.", metavar="MODEL")]
Size = Annotated[str | None, _clip("In pixels; default: the model's own.", "WxH")]
Frames = Annotated[int | None, _clip("Number of frames.", "N")]
Seconds = Annotated[float | None, _clip("Of video, instead of --frames.", "S")]
Fps = Annotated[float | None, _clip("Frames a second.", "X")]
Steps = Annotated[int | None, _clip("Inference steps.", "N")]
GuidanceScale = Annotated[float | None, _clip("1 is none and halves the work.", "X")]
Image = Annotated[
    bool, typer.Option("--image", help="The clip begins with a picture.", metavar="", rich_help_panel="Clip")
]
Gpu = Annotated[str, _run("Kind of GPU.", "NAME")]
Count = Annotated[int, _run("GPUs that share one clip.", "N")]
Precision = Annotated[str, _run("bf16, fp8, int8 ...", "NAME")]
Engine = Annotated[str, _run("What runs the model.", "NAME")]
Attention = Annotated[str | None, _run("The attention kernel: fa2, fa3, sage2 ...", "NAME")]
StepReuse = Annotated[str | None, _run("A method such as teacache, or the share of steps.", "X")]
Parallelism = Annotated[str | None, _run('How the GPUs share it: "cfg2 ulysses4".', "TEXT")]
Price = Annotated[str | None, _money("USD per GPU-hour, a provider or a commitment.", "X")]
Assume = Annotated[list[str] | None, _money("Another value of an assumption; repeat it.", "NAME=X")]
BatchFile = Annotated[Path | None, typer.Option(help="Answer every row of a CSV file.", metavar="FILE")]
Json = Annotated[bool, typer.Option("--json", help="As JSON: a receipt, or the rows of --batch.", metavar="")]
CsvFile = Annotated[Path | None, typer.Option(help="As CSV to a file; - is stdout.", metavar="FILE")]


def estimate(  # noqa: PLR0913, PLR0917  (each option of the command is a parameter)
    context: typer.Context,
    model: Model = None,
    gpu: Gpu = "h100-sxm",
    count: Count = 1,
    size: Size = None,
    frames: Frames = None,
    seconds: Seconds = None,
    fps: Fps = None,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    image: Image = False,
    precision: Precision = "bf16",
    engine: Engine = "diffusers",
    attention: Attention = None,
    step_reuse: StepReuse = None,
    parallelism: Parallelism = None,
    price: Price = None,
    assume: Assume = None,
    batch: BatchFile = None,
    json: Json = False,
    csv: CsvFile = None,
) -> None:
    """Estimate seconds, dollars, memory and energy of a clip of MODEL; nothing runs."""
    if json and csv is not None:
        raise InvalidRequest("--json and --csv are both given; use one")
    if batch is not None:
        _refuse_clip(context)
        _answer_batch(batch, csv, json=json)
        return
    if model is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    from sora_runtime.cost.estimate import Ask

    width, height = parse_size(size) if size else (None, None)
    ask = Ask(
        model,
        gpu,
        count,
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
        parallelism=parallelism,
        price=price,
        assumptions=parse_assumptions(assume or []),
        pace=_pace(gpu),
    )
    _answer(ask, csv, json=json)


def parse_assumptions(texts: Sequence[str], example: str = "pue=1.2") -> dict[str, float]:
    """Reads NAME=X as often as it is given; `example` is what a refusal shows.

    Raises:
        InvalidRequest: a text is something else.
    """
    values = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            values[name.strip()] = float(value)
        except ValueError:
            raise InvalidRequest(f"--assume {text} is not NAME=X with a number; use one such as {example}") from None
    return values


def _refuse_clip(context: typer.Context) -> None:
    """A file's rows state everything, so an option beside it would be silently unused."""
    kept = {"batch", "json", "csv"}
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in kept and source is not None and source.name == "COMMANDLINE":
            shown = "MODEL" if name == "model" else f"--{name.replace('_', '-')}"
            raise InvalidRequest(f"{shown} is given beside --batch, whose rows state it; leave it out")


def _pace(gpu: str) -> float | None:
    """Of this machine at the moment, if the estimate is of this machine."""
    from sora_runtime.cost.profile_path import is_this_machine

    if not is_this_machine(gpu):
        return None
    from sora_runtime.bench.pace import pace_now

    return pace_now()


def _answer(ask: Ask, csv: Path | None, *, json: bool) -> None:
    from sora_runtime.cost.estimate import estimate_of

    found = estimate_of(ask)
    if json:
        typer.echo(_receipt(found))
    elif csv is not None:
        from sora_runtime.cli.estimate_tables import estimate_csv

        _write(csv, estimate_csv(found))
    else:
        from sora_runtime.cli.estimate_tables import print_estimate

        print_estimate(found)


def _receipt(found: Estimate) -> str:
    from datetime import UTC, datetime

    from sora_runtime.cost.record import receipt_of

    return dumps(receipt_of(found, datetime.now(UTC)).model_dump(mode="json"))


def dumps(record: object) -> str:
    """JSON as all commands print it."""
    return json_format.dumps(record, indent=2, ensure_ascii=True, allow_nan=False)


def _answer_batch(file: Path, out: Path | None, *, json: bool) -> None:
    from sora_runtime.cost.batch import answers, as_csv, read_batch
    from sora_runtime.cost.rates import fitted

    batch = read_batch(file)
    answered = list(answers(batch, fitted()))
    if json:
        typer.echo(dumps([_record(answer) for answer in answered]))
    else:
        _write(out or STDOUT, as_csv(batch, answered))
    typer.echo(_batch_note(batch, answered), err=True)


def _record(answer: Answer) -> dict[str, object]:
    """A row as it was, with numbers for what was predicted; null is what is not known."""
    found = answer.prediction
    return {
        **answer.record.cells,
        "predicted_p10": found and found.p10,
        "predicted_p50": found and found.p50,
        "predicted_p90": found and found.p90,
        "refused_because": answer.refused or None,
    }


def _batch_note(batch: Batch, answered: Sequence[Answer]) -> str:
    refused = [answer for answer in answered if answer.refused]
    lines = ", ".join(str(answer.record.line) for answer in refused[:8]) + (" ..." if len(refused) > 8 else "")
    count = len(answered) - len(refused)
    text = f"{count:,} row{'' if count == 1 else 's'} answered, {len(refused):,} refused"
    text += f" (line{'' if len(refused) == 1 else 's'} {lines})" if refused else ""
    return text + (f"; columns without a meaning here: {', '.join(batch.unknown)}" if batch.unknown else "")


def _write(path: Path, text: str) -> None:
    if path == STDOUT:
        typer.echo(text.encode(), nl=False)
        return
    from sora_runtime.output import write_text

    write_text(path, text)
