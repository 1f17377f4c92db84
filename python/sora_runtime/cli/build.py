"""`sora-bench build`: makes a bundle of a diffusers checkpoint, and its engines."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sora_export.precision import Precision
from sora_runtime.cli import build_options as option
from sora_runtime.cli.parse import parse_numbers, parse_size, split_list
from sora_runtime.errors import InvalidRequest, SoraError

if TYPE_CHECKING:
    from sora_export.build import Calibration
    from sora_export.build_plan import BuildPlan, Estimate, Phase
    from sora_export.engine_from_onnx import EngineOptions

_EXPORT_PACKAGES = {
    "diffusers",
    "ftfy",
    "huggingface_hub",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "skimage",
    "torch",
    "transformers",
}
_DEFAULT_TARGETS = ("8.9", "12.0")


def build(  # noqa: PLR0913, PLR0917  (each option of the command is a parameter)
    checkpoint: option.Checkpoint,
    out: option.Out,
    size: option.Size,
    frames: option.Frames,
    task: option.Task = None,
    lora: option.Lora = None,
    lora_2: option.Lora2 = None,
    few_step: option.FewStep = None,
    precision: option.PrecisionOption = None,
    engine: option.Engine = option.EngineName.onnxruntime,
    compute_capability: option.ComputeCapability = None,
    calibration: option.Calibration = None,
    calibration_steps: option.CalibrationSteps = None,
    weights: option.Weights = option.EngineWeights.embedded,
    engine_cache: option.EngineCache = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="For receipts; if not given, the folder's.")] = None,
    check_parity: option.CheckParity = True,
    plan_only: option.Plan = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on the way.", metavar="")] = False,
) -> None:
    """Export CHECKPOINT to graphs for every --size with every --frames; its weights stay put."""
    sizes = [(pixels.height, pixels.width) for pixels in map(parse_size, split_list(size))]
    for path in (Path(checkpoint), out):
        _check_path(path)
    with export_packages("build"):
        from sora_export.adapter import find_adapter
        from sora_export.build import BuildRequest, build, plan
        from sora_export.few_step import parse_few_step

        request = BuildRequest(
            checkpoint=checkpoint,
            out=out,
            sizes=sizes,
            num_frames=parse_numbers("--frames", split_list(frames)),
            tasks=split_list(task or []) or None,
            name=name,
            precision=precision or _default_precision(engine),
            engine=engine.value,
            calibration=_calibration(calibration, calibration_steps),
            check_parity=check_parity,
            engine_options=_engine_options(engine, split_list(compute_capability or []), weights),
            adapters=(
                *(find_adapter(text) for text in lora or []),
                *(find_adapter(text, "transformer_2") for text in lora_2 or []),
            ),
            few_step=None if few_step is None else parse_few_step(few_step),
            engine_cache=engine_cache,
        )
        if plan_only:
            _print_plan(plan(request))
            return
        folder = build(request, (lambda _: None) if quiet else _say)
    if not quiet:
        typer.echo(folder)


def _default_precision(engine: option.EngineName) -> Precision:
    """TensorRT has no fused attention in float32."""
    return Precision.FP32 if engine is option.EngineName.onnxruntime else Precision.BF16


def _calibration(file: Path | None, steps: int | None) -> Calibration | None:
    from sora_export.build import Calibration
    from sora_export.trajectories import read_prompts

    if file is None:
        if steps is not None:
            raise InvalidRequest(f"--calibration-steps {steps} goes with --calibration PROMPTS; give both or neither")
        return None
    return Calibration(read_prompts(file), steps)


def _engine_options(
    engine: option.EngineName, targets: list[str], weights: option.EngineWeights
) -> EngineOptions | None:
    if engine is option.EngineName.onnxruntime:
        if targets:
            raise InvalidRequest(
                f"--compute-capability {','.join(targets)} is for TensorRT; add --engine tensorrt_rtx or leave it out"
            )
        return None
    from sora_export.engine_from_onnx import EngineOptions

    default = _DEFAULT_TARGETS if engine is option.EngineName.tensorrt_rtx else ()
    return EngineOptions(
        library="tensorrt" if engine is option.EngineName.tensorrt else "tensorrt_rtx",
        compute_capabilities=tuple(targets) or default,
        weights=weights.value,
    )


@contextmanager
def export_packages(command: str) -> Iterator[None]:
    """Turns a package that the extra `export` would have brought into one sentence."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXPORT_PACKAGES:
            raise
        raise SoraError(
            f"{command} needs {package}, which is not installed; pip install 'sora-runtime[export]'"
        ) from error


def _print_plan(planned: BuildPlan) -> None:
    from sora_runtime.cli.tables import columns, facts, print_all

    def row(name: str, of: Phase | BuildPlan) -> tuple[str, ...]:
        sizes = [_span(each, 2**20, "MiB") for each in (of.peak_memory_bytes, of.disk_bytes)]
        return name, _span(of.seconds, 1, "s"), *sizes

    names = ("phase", "time", "peak memory", "disk")
    rows = [*(row(phase.name, phase) for phase in planned.phases), row("all", planned)]
    print_all(
        [
            columns(names, rows, numbers=set(names[1:])),
            facts([("estimated", f"from builds on {planned.measured_on}"), ("calibration", planned.reason)]),
        ]
    )


def _span(estimate: Estimate, unit: float, name: str) -> str:
    """From the low to the high end, to two digits, which is more than is known."""

    def rounded(value: float) -> str:
        digits = 1 - math.floor(math.log10(value)) if value > 0 else 0
        return f"{round(value, min(digits, 1)):,g}"

    return f"{rounded(estimate.low / unit)} to {rounded(estimate.high / unit)} {name}"


def _check_path(path: Path) -> None:
    try:
        path.exists()  # raises where that cannot even be asked: a name too long, a folder that is locked
    except OSError as error:
        raise SoraError(f"{path} cannot be opened ({os.strerror(error.errno or 0).lower()}); check the path") from error


def _say(message: str) -> None:
    typer.echo(message, err=True)
