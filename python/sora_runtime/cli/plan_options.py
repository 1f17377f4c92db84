"""The options of `sora-bench plan`, as types that its signature is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _demand(text: str, metavar: str) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Demand")


def _clip(text: str, metavar: str) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Clip")


def _fleet(text: str, metavar: str) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Fleet")


Model = Annotated[str | None, typer.Argument(help="A model of the catalogue, or a file.", metavar="MODEL")]
RequestsPerHour = Annotated[float | None, _demand("Clips asked for, on average.", "X")]
Trace = Annotated[Path | None, _demand("CSV with arrival_seconds and, if wanted, clips.", "FILE")]
PeakFactor = Annotated[float | None, _demand("Busiest hour over the mean; default 1.", "X")]
Latency = Annotated[float | None, _demand("Seconds that 95% of clips keep; default 300.", "S")]

Size = Annotated[str | None, _clip("In pixels.", "WxH")]
Frames = Annotated[int | None, _clip("Number of frames.", "N")]
Seconds = Annotated[float | None, _clip("Instead of --frames.", "S")]
Steps = Annotated[int | None, _clip("Inference steps.", "N")]
GuidanceScale = Annotated[float | None, _clip("1 is none and halves the work.", "X")]
Precision = Annotated[str | None, _clip("bf16, fp8, int8 ...", "NAME")]
Engine = Annotated[str | None, _clip("What runs the model.", "NAME")]
Attention = Annotated[str | None, _clip("The attention kernel.", "NAME")]

Gpu = Annotated[list[str] | None, _fleet("May be repeated; default: all with a price.", "NAME")]
SpotShare = Annotated[float | None, _fleet("0 to 1; default: 0 or 0.5, the cheaper.", "X")]
Assume = Annotated[list[str] | None, _fleet("Another value of an assumption.", "NAME=X")]
Published = Annotated[str | None, _fleet("Redo a published calculation: factorial-funds.", "NAME")]

Json = Annotated[bool, typer.Option("--json", help="As JSON.", metavar="")]
Csv = Annotated[bool, typer.Option("--csv", help="As CSV.", metavar="")]
