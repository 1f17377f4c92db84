"""What the precision tests share: the inputs of a graph, an evaluation, the error of two answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from sora_export.emulation import emulated

SIZE, FRAMES = (32, 48), 9
"""Of the bundles in conftest.py."""

Feeds = dict[str, NDArray[Any]]


def make_feeds(graph: Path, seed: int = 0) -> Feeds:
    """Normal numbers for every input; half of a text is padding."""
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for value in ir.load(graph).graph.inputs:
        assert value.name is not None and value.shape is not None
        shape = [int(size) for size in value.shape.numpy()]
        if value.name == "timestep":
            feeds[value.name] = np.full(shape, 437.5, np.float32)
        elif value.name == "attention_mask":
            feeds[value.name] = (np.arange(shape[1])[None] < shape[1] // 2).astype(np.int64)
        elif value.dtype == ir.DataType.INT64:
            feeds[value.name] = rng.integers(3, 30, shape)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def run(model: ir.Model | Path, folder: Path, feeds: Feeds) -> list[NDArray[np.float32]]:
    """ONNX Runtime's outputs; half and Q/DQ graphs are emulated in float32."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    data = model.read_bytes() if isinstance(model, Path) else ir.to_proto(emulated(model)).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def relative_l2(found: NDArray[Any], expected: NDArray[Any]) -> float:
    difference = found.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


def external(model: ir.Model) -> dict[str, tuple[str, int | None, int | None]]:
    """Where each initialiser that lies outside of the graph lies."""
    return {
        name: (data.location, data.offset, data.length)
        for name, value in model.graph.initializers.items()
        if isinstance(data := value.const_value, ir.ExternalTensor)
    }
