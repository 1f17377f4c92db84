"""From a checkpoint to a bundle in a precision, for an engine: export, calibrate, convert, build."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sora_export.adapted import Adapted
from sora_export.adapter import Adapter
from sora_export.build_plan import BuildPlan, component_size, plan_build
from sora_export.bundle_from_checkpoint import build_bundle, check_shapes, chosen_shapes
from sora_export.checkpoint import Checkpoint
from sora_export.convert_bundle import Statistics, calibrate_bundle, convert_bundle
from sora_export.defaults import read_defaults, with_defaults
from sora_export.engine_from_onnx import EngineOptions
from sora_export.engines_of_bundle import build_engines
from sora_export.families import family_of
from sora_export.few_step import FewStep, with_few_step
from sora_export.hub import local_checkpoint
from sora_export.precision import EngineName, Precision, choose
from sora_export.staging import is_abandoned
from sora_export.trajectories import Prompt
from sora_runtime.engines.store import EngineStore
from sora_runtime.errors import InvalidRequest, OutputError

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Calibration:
    """What quantisation learns its scales from."""

    prompts: Sequence[Prompt]
    num_inference_steps: int | None = None
    """Of each clip; the model's own number if None."""


@dataclass(frozen=True)
class BuildRequest:
    """What to build; see `sora_export.bundle_from_checkpoint.build_bundle` for the first fields."""

    checkpoint: str
    """A diffusers folder, a bundle, or the id of a repository on the hub."""
    out: Path
    sizes: Sequence[tuple[int, int]]
    """(height, width) in pixels."""
    num_frames: Sequence[int]
    tasks: Sequence[str] | None = None
    name: str | None = None
    precision: Precision = Precision.FP32
    engine: EngineName = "onnxruntime"
    calibration: Calibration | None = None
    """Needed where activations have static scales: fp8, int8 and nvfp4 for TensorRT."""
    check_parity: bool = True
    engine_options: EngineOptions | None = None
    adapters: Sequence[Adapter] = ()
    """LoRAs to merge into the transformers, in this order."""
    few_step: FewStep | None = None
    """The levels that a distilled model is made for; see `sora_export.few_step`."""
    engine_cache: Path | None = None
    """Where TensorRT engines are kept; None: the user's cache folder."""


def build(request: BuildRequest, progress: Progress = lambda message: None) -> Path:
    """Builds what is asked for and returns the bundle's folder.

    A bundle in another precision than float32 is converted from a float32 one, which is made in a folder beside it
    out of links and removed at the end; graphs are small, so this costs no disk to speak of.

    Raises:
        InvalidRequest: The precision is not to be had on that engine or device, or needs calibration prompts.
        BundleError: The checkpoint is incomplete, is a pickle, or is of an unknown pipeline.
        EngineError: A graph differs from torch, or the engine's library refuses it.
        OutputError: Something cannot be written; `out` is as it was.
    """
    _check(request)
    source = local_checkpoint(request.checkpoint, progress)
    _say_what_is_left_out(request, source, progress)
    if request.precision is Precision.FP32:
        folder = _export(request, source, request.out, progress)
    else:
        folder = _converted(request, source, progress)
    if request.engine_options is not None:
        build_engines(folder, request.engine_options, EngineStore(request.engine_cache), progress)
    return folder


def plan(request: BuildRequest) -> BuildPlan:
    """What the build will take, from the sizes of the checkpoint's weights; nothing is built.

    Raises:
        InvalidRequest, BundleError: As `build` would, as far as that shows in the configs.
    """
    _check(request)
    checkpoint = Checkpoint(local_checkpoint(request.checkpoint, lambda message: None))
    family = family_of(checkpoint)
    adapted = Adapted(checkpoint.root, request.adapters, request.few_step)
    facts, user, merges = family.read_facts(checkpoint), read_defaults(checkpoint), adapted.plans(family)
    shapes = chosen_shapes(facts.pop("tasks"), request.tasks, request.sizes, request.num_frames)
    facts = with_few_step(with_defaults(facts, user, shapes), adapted.levels(user), checkpoint)
    check_shapes(facts, shapes)
    sizes = [
        component_size(component.name, checkpoint.weight_files(component.folder), len(component.graphs))
        for component in family.components(checkpoint, facts, shapes)
    ]
    options = request.engine_options
    return plan_build(
        sizes,
        precision=request.precision,
        merged=[tensor for merge in merges for tensor in merge.tensors.values()],
        plans_per_graph=0 if options is None else max(len(options.compute_capabilities), 1),
        weights_in_plan=options is None or options.weights in ("embedded", "streamed"),
    )


def needs_calibration(precision: Precision, engine: EngineName) -> bool:
    """Whether activations get scales that must be known beforehand; ONNX Runtime's int8 measures each as it comes."""
    return precision.quantised and not (engine == "onnxruntime" and precision is Precision.INT8)


def _check(request: BuildRequest) -> None:
    """Refuses what would only fail after an hour of exporting and calibrating."""
    options = request.engine_options
    for target in (options.compute_capabilities if options is not None else ()) or (None,):
        choose(request.precision, engine=request.engine, part="transformer", compute_capability=target)
    if needs_calibration(request.precision, request.engine) and request.calibration is None:
        raise InvalidRequest(
            f"precision {request.precision} for {request.engine} takes its scales from real clips; "
            "give prompts with --calibration FILE"
        )


def _say_what_is_left_out(request: BuildRequest, source: Path, progress: Progress) -> None:
    """A bundle's weights are its checkpoint's: what was merged beside them is not carried into another build."""
    try:
        held = json.loads((source / "bundle.json").read_bytes()).get("adapters", [])
    except (OSError, ValueError, AttributeError):
        return
    if held and not request.adapters:
        names = ", ".join(str(adapter.get("name")) for adapter in held)
        progress(f"building without {names}, which {source} holds; give --lora again to merge it")


def _export(request: BuildRequest, source: Path, out: Path, progress: Progress) -> Path:
    return build_bundle(
        Adapted(source, request.adapters, request.few_step),
        out,
        request.sizes,
        request.num_frames,
        tasks=request.tasks,
        name=request.name or source.absolute().name,
        check_parity=request.check_parity,
        progress=progress,
    )


def _converted(request: BuildRequest, source: Path, progress: Progress) -> Path:
    out = request.out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for left in out.parent.glob(f".*.{out.name}.float32"):
            if is_abandoned(left):
                shutil.rmtree(left, ignore_errors=True)
        folder = out.parent / f".{os.getpid()}.{out.name}.float32"
        folder.mkdir()
    except OSError as error:
        raise OutputError(f"cannot write beside {out} ({error.strerror}); give another --out") from error
    try:
        float32 = _export(request, source, folder, progress)
        statistics: Mapping[str, Statistics] = {}
        if request.calibration is not None:
            statistics = calibrate_bundle(
                float32,
                request.calibration.prompts,
                request.calibration.num_inference_steps,
                progress,
                sensitive_to=request.precision if needs_calibration(request.precision, request.engine) else None,
            )
        return convert_bundle(float32, out, request.precision, request.engine, statistics, progress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
