"""ONNX Runtime on graphs that torch.onnx.export wrote, called step by step from diffusers' loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.jobs import Job
from benchmarks.peers.loop import InDiffusersLoop, Network


class PlainExport(InDiffusersLoop):
    """torch.onnx.export with its defaults (dynamo, optimised), weights in a file beside the graph."""

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

    def _networks(self, job: Job) -> Mapping[str, Network]:
        from benchmarks.peers.pipeline import PARTS

        return {name: session(job.file(f"{name}.onnx"), job.threads) for name in PARTS}

    def _alone(self, job: Job) -> Network:
        return session(job.file("transformer.onnx"), job.threads)


def session(graph: Path, threads: int) -> Network:
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
