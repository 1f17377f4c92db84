"""The sampler's own time: a whole trajectory around a network that hands its input on."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from sora_runtime.bench.onnx_bytes import GraphBytes
from sora_runtime.denoise import Denoiser, Embeddings
from sora_runtime.engines.onnxruntime import OnnxRuntimeEngine
from sora_runtime.sampling import Euler, FlowSchedule, Guidance, compile_program

STEPS, REPEATS, CHANNELS = 20, 5, 16


def step_seconds(latents: tuple[int, int, int], num_threads: int) -> float:
    """One step with guidance over latents of these frames, rows and columns."""
    shape = (1, CHANNELS, *latents)
    program = compile_program(Euler(), FlowSchedule(), STEPS, Guidance(scale=3.0))
    texts = {"encoder_hidden_states": np.zeros((1, 1, 1), np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "identity.onnx"
        file.write_bytes(_identity(shape))
        denoiser = Denoiser([OnnxRuntimeEngine(file, num_threads=num_threads)], num_threads=num_threads)
        start = np.random.default_rng(0).standard_normal(shape, np.float32)
        taken = [
            np.median(
                denoiser.run(
                    program, Embeddings(texts, texts), start, noise=None, on_step=None, cancel=None
                ).statistics.row_seconds
            )
            for _ in range(REPEATS)
        ]
        denoiser.close()
    return float(min(taken))


def _identity(shape: tuple[int, ...]) -> bytes:
    graph = GraphBytes()
    x = graph.input("hidden_states", shape)
    graph.input("timestep", (1,))
    graph.input("encoder_hidden_states", (1, 1, 1))
    graph.node("Identity", x, output="model_output")
    graph.output("model_output", shape)
    return graph.model()
