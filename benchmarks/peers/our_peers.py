"""This runtime: float32 or int8 on ONNX Runtime, or float32 on OpenVINO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.jobs import Ask, Drawn, FirstFrame, Job
from benchmarks.peers.models import CLIPS, TRANSFORMERS

CALIBRATION = Path(__file__).parent.parent / "calibration_prompts.txt"


class OurPeer:
    """The runtime on a bundle, or its engine on a transformer's graph.

    Args:
        precision: of the networks; int8 is made ahead of time.
        engine: what runs them.
    """

    def __init__(self, precision: Literal["fp32", "int8"] = "fp32", engine: str = "onnxruntime") -> None:
        self._precision = precision
        self._engine = engine
        self._runtime: Any = None
        self._binding: Any = None
        self._output: Any = None

    def prepare(self, job: Job) -> None:
        """Graphs of a transformer; of a shipped bundle its int8 form."""
        if job.model != CLIPS:
            from benchmarks.peers.graphs import make_graph, make_int8_graph

            (make_int8_graph if self._precision == "int8" else make_graph)(job)
        elif self._precision == "int8" and not self._bundle(job).exists():
            make_int8_bundle(Path(job.checkpoint), job.file("fp32"), self._bundle(job))

    def load(self, job: Job) -> None:
        """Open the bundle, whose engines are made by the first clip; or make the engine."""
        if job.model == CLIPS:
            from sora_runtime import Runtime

            self._runtime = Runtime.load(self._bundle(job), num_threads=job.threads, engine=self._engine, **job.options)
            return
        from benchmarks.peers.graphs import FP32, INT8
        from sora_runtime.engines.registry import make_engine

        graph = Path(job.checkpoint) / (INT8 if self._precision == "int8" else FP32)
        engine = make_engine(self._engine, graph, num_threads=job.threads)
        self._output = np.empty(engine.outputs["model_output"].shape, np.float32)
        self._binding = engine.bind({**TRANSFORMERS[job.model].inputs(), "model_output": self._output})

    def run(self, ask: Ask, first_frame: FirstFrame) -> Drawn:
        """A clip; its first chunk of frames counts as the first frame."""
        seen: list[bool] = []

        def on_frames(_: NDArray[np.uint8]) -> None:
            if not seen:
                first_frame()
            seen.append(True)

        clip = self._runtime.generate(
            ask.prompt,
            seed=ask.seed,
            rng="torch",
            num_inference_steps=ask.steps,
            guidance_scale=ask.guidance,
            on_frames=on_frames,
            **_fields(ask.more),
        )
        return Drawn(clip.frames, clip.latents, clip.receipt.evaluations.made)

    def forward(self) -> NDArray[np.float32]:
        """An evaluation."""
        self._binding.run()
        output: NDArray[np.float32] = self._output
        return output

    def _bundle(self, job: Job) -> Path:
        return Path(job.checkpoint) if self._precision == "fp32" else job.file("int8")


def _fields(more: dict[str, Any]) -> dict[str, Any]:
    """Fields of a request out of JSON: settings of step reuse are a record there."""
    from sora_runtime import StepReuse

    fields = dict(more)
    if "step_reuse" in fields:
        settings = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields["step_reuse"].items()
        }
        fields["step_reuse"] = StepReuse(**settings)
    if "guidance_interval" in fields:
        fields["guidance_interval"] = tuple(fields["guidance_interval"])
    return fields


def make_int8_bundle(shipped: Path, fp32: Path, int8: Path) -> None:
    """What `sora-bench build --precision int8 --calibration benchmarks/calibration_prompts.txt` makes."""
    from sora_export.bundle_from_checkpoint import build_bundle
    from sora_export.convert_bundle import calibrate_bundle, convert_bundle
    from sora_export.precision import Precision
    from sora_export.trajectories import read_prompts

    defaults = json.loads((shipped / "bundle.json").read_bytes())["facts"]["defaults"]
    size = [(defaults["height"], defaults["width"])]
    if not fp32.exists():
        build_bundle(shipped, fp32, size, [defaults["num_frames"]], tasks=["t2v"], check_parity=False)
    scales = calibrate_bundle(fp32, read_prompts(CALIBRATION), None, print)
    convert_bundle(fp32, int8, Precision.INT8, "onnxruntime", scales, print)
