"""A bundle's engines on a CUDA device, network by network, against ONNX Runtime on wan-pocket's float32 graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sora_runtime.bundle import Bundle, find_bundle
from sora_runtime.engines.engine import TensorSpec
from sora_runtime.engines.onnxruntime import OnnxRuntimeEngine
from sora_runtime.machine import available_cores
from sora_runtime.stages import open_engine

_TIMESTEP = 500
_TOKENS = 64  # of the vocabulary, that are drawn from


def compare_networks(folder: Path) -> dict[str, float]:
    """The relative L2 error of every network of wan-pocket as it was built, on drawn inputs, by graph.

    Raises:
        EngineError: an engine cannot be opened or run.
    """
    built, plain = Bundle.load(folder), Bundle.load(find_bundle("wan-pocket"))
    graphs = sorted(name for name in built.manifest.files if name.endswith(".onnx"))
    return {graph: _error_of(built, plain, graph) for graph in graphs}


def _error_of(built: Bundle, plain: Bundle, graph: str) -> float:
    reference = OnnxRuntimeEngine(plain.path(graph), num_threads=available_cores())
    engine = open_engine(built, graph, num_threads=available_cores(), engine=built.manifest.engine)
    random = np.random.default_rng(0)
    given = {name: _drawn(random, name, spec) for name, spec in reference.inputs.items()}
    expected = {name: spec.zeros() for name, spec in reference.outputs.items()}
    reference.bind({**given, **expected}).run()
    cast = {name: given[name].astype(spec.dtype) for name, spec in engine.inputs.items()}
    found = {name: spec.zeros() for name, spec in engine.outputs.items()}
    engine.bind({**cast, **found}).run()
    engine.close()
    reference.close()
    errors = {name: found[name].astype(np.float32) - expected[name] for name in expected}
    return max(_norm(error) / max(_norm(expected[name]), 1e-12) for name, error in errors.items())


def _norm(values: NDArray[Any]) -> float:
    return float(np.linalg.norm(values.ravel()))


def _drawn(random: np.random.Generator, name: str, spec: TensorSpec) -> NDArray[Any]:
    """Whole words for what takes tokens, a time in the middle, normals for all else."""
    if name == "input_ids":
        return random.integers(1, _TOKENS, spec.shape).astype(spec.dtype)
    if name == "attention_mask":
        return np.ones(spec.shape, spec.dtype)
    if name == "timestep":
        return np.full(spec.shape, _TIMESTEP, spec.dtype)
    return random.standard_normal(spec.shape).astype(spec.dtype)
