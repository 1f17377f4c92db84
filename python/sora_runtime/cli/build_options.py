"""The options of `sora-bench build`, as types that its signature is made of."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from sora_export.precision import Precision


class EngineName(StrEnum):
    """What runs the graphs."""

    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt_rtx"


class EngineWeights(StrEnum):
    """Where the weights of a TensorRT engine lie."""

    embedded = "embedded"
    streamed = "streamed"
    inputs = "inputs"
    stripped = "stripped"


def _shape(text: str, metavar: str) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Shapes")


def _weights(text: str, metavar: str) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Distilled models")


def _engine(text: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Precision and engine", **more)


Checkpoint = Annotated[str, typer.Argument(help="A diffusers folder or hub id.", metavar="CHECKPOINT")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="The bundle; CHECKPOINT itself is fine.")]
Size = Annotated[list[str], _shape("In pixels.", "WxH[,WxH]")]
Frames = Annotated[list[str], _shape("Number of frames.", "N[,N]")]
Task = Annotated[list[str] | None, _shape("t2v, i2v; default: all it is for.", "TASK[,TASK]")]

Lora = Annotated[list[str] | None, _weights("Merge an adapter; 0.8 of it: FILE=0.8. May be repeated.", "FILE|DIR[=X]")]
Lora2 = Annotated[list[str] | None, _weights("The same into the second transformer.", "FILE|DIR[=X]")]
FewStep = Annotated[
    str | None,
    _weights("Its default levels: wan2.1-4, wan2.2-4, fastwan-3, ltx-8 or lcm:1.0,0.5.", "NAME|[SOLVER:]X[,X]"),
]

PrecisionOption = Annotated[Precision | None, _engine("Default: fp32, and bf16 for TensorRT.")]
Engine = Annotated[EngineName, _engine("What is to run the graphs.")]
ComputeCapability = Annotated[list[str] | None, _engine("GPUs that TensorRT builds for: 8.9,12.0.", "X.Y[,X.Y]")]
Calibration = Annotated[Path | None, _engine("Prompts, one a line: needed for fp8 and int8.", "FILE")]
CalibrationSteps = Annotated[int | None, _engine("Steps of each; default: the model's.", "N", min=1)]
Weights = Annotated[EngineWeights, _engine("Where TensorRT engines have their weights.")]
EngineCache = Annotated[Path | None, _engine("Where engines are kept.", "DIR")]

CheckParity = Annotated[
    bool,
    typer.Option("--parity/--no-parity", help="Compare every graph with torch on the real weights, or not."),
]
Plan = Annotated[
    bool, typer.Option("--plan", help="Only say how long it will take, and what RAM and disk.", metavar="")
]
