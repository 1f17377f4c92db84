"""ONNX Runtime on graphs that torch.onnx.export wrote, called step by step from diffusers' loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.jobs import Ask, Drawn, FirstFrame, Job
from benchmarks.peers.models import CLIPS, TRANSFORMERS


class PlainExport:
    """torch.onnx.export with its defaults (dynamo, optimised), weights in a file beside the graph."""

    def __init__(self) -> None:
        self._pipeline: Any = None
        self._transformer: Any = None
        self._inputs: list[NDArray[np.float32]] = []

    def prepare(self, job: Job) -> None:
        """Export, unless an earlier part has."""
        import torch

        from benchmarks.peers.exports import exports

        for export in exports(job):
            if export.file(job, ".onnx").exists():
                continue
            with torch.no_grad():
                program = torch.onnx.export(export.module, export.inputs, dynamo=True)
            assert program is not None
            program.save(export.file(job, ".onnx"), external_data=True)

    def load(self, job: Job) -> None:
        """Sessions with default options but for the threads."""
        if job.model == CLIPS:
            import torch

            from benchmarks.peers.pipeline import PARTS, pipeline_around

            torch.set_num_threads(job.threads)
            networks = {name: session(job.file(f"{name}.onnx"), job.threads) for name in PARTS}
            self._pipeline = pipeline_around(job.checkpoint, networks)
            return
        self._transformer = session(job.file("transformer.onnx"), job.threads)
        self._inputs = list(TRANSFORMERS[job.model].inputs().values())

    def run(self, ask: Ask, first_frame: FirstFrame) -> Drawn:
        """A clip by WanPipeline around the sessions."""
        from benchmarks.peers.pipeline import draw

        return draw(self._pipeline, ask, first_frame)

    def forward(self) -> NDArray[np.float32]:
        """An evaluation."""
        output: NDArray[np.float32] = self._transformer(*self._inputs)
        return output


def session(graph: Path, threads: int) -> Callable[..., NDArray[np.float32]]:
    """A graph as a function of its inputs in their order."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    made = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in made.get_inputs()]

    def call(*arrays: NDArray[Any]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = made.run(None, dict(zip(names, arrays, strict=True)))[0]
        return output

    return call
