"""Measures every graph of a bundle against torch, whatever engine and precision it is for."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from numpy.typing import NDArray

from sora_export.calibration import session_of
from sora_export.checkpoint import Checkpoint
from sora_export.convert_bundle import graphs_of
from sora_export.emulation import emulated
from sora_export.families import Arrays, Component, RunGraph, Shapes, family_of
from sora_export.parity import graph_runner, relative_l2
from sora_export.precision import Precision

_HALVES = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}


@dataclass(frozen=True)
class PartError:
    """How far a graph is from torch in float32."""

    component: str
    graph: str
    precision: Precision
    """Of its matrix products, which `sora_export.precision.choose` may have kept higher than was asked for."""
    error: float
    """Relative L2."""
    torch_error: float | None
    """Relative L2 of torch itself in that precision, where it is a half."""


def shapes_of(manifest: Mapping[str, Any]) -> Shapes:
    """What bundle.json says was built."""
    buckets = manifest["components"]["transformer"]["buckets"]
    sizes = dict.fromkeys((bucket["height"], bucket["width"]) for bucket in buckets)
    frames = dict.fromkeys(bucket["num_frames"] for bucket in buckets)
    return Shapes(list(sizes), list(frames), manifest["tasks"])


def part_errors(folder: Path, progress: Callable[[str], None] = lambda message: None) -> Iterator[PartError]:
    """Feeds every component's seeded inputs to its untouched torch module and to the bundle's graphs.

    A graph for TensorRT runs in float32 arithmetic with every value rounded as the engine rounds it.

    Args:
        folder: The bundle.
        progress: Called with one sentence for each component.

    Raises:
        BundleError: The checkpoint's weights do not fit.
        EngineError: A graph cannot be run.
    """
    manifest = json.loads((folder / "bundle.json").read_bytes())
    checkpoint, engine = Checkpoint(folder, manifest.get("merged", {})), manifest.get("engine", "onnxruntime")
    graphs = {graph for _, graph in graphs_of(manifest["components"])}
    run = graph_runner(lambda file: folder / file) if engine == "onnxruntime" else _emulating_runner(folder)
    for component in family_of(checkpoint).components(checkpoint, manifest["facts"], shapes_of(manifest)):
        progress(f"comparing {component.name} with torch")
        present = [graph for graph in component.graphs if graph in graphs]
        if not present:
            continue
        precision = Precision(manifest["reports"][present[0]].get("precision", Precision.FP32))
        errors, own = _errors(component, run, _HALVES.get(precision))
        for graph in present:
            yield PartError(component.name, graph, precision, errors[graph], own.get(graph))


def _errors(component: Component, run: RunGraph, half: torch.dtype | None) -> tuple[dict[str, float], dict[str, float]]:
    """Relative L2 of every graph against torch in float32, and of torch in half precision against the same."""
    reference = component.load_reference()
    with torch.no_grad():
        pairs = component.compare(reference, run)
        errors = {graph: relative_l2(got, want) for graph, (got, want) in pairs.items()}
        if half is None:
            return errors, {}
        with warnings.catch_warnings(), _half_arithmetic(half):
            warnings.simplefilter("ignore")  # torch: a norm's weight is wider than its input
            rounded = component.compare(reference, run)
    return errors, {graph: relative_l2(rounded[graph][1], want) for graph, (_, want) in pairs.items()}


def _emulating_runner(folder: Path) -> RunGraph:
    current: dict[str, Any] = {}

    def run(file: str, feeds: Arrays) -> Arrays:
        if file not in current:
            current.clear()
            current[file] = session_of(emulated(ir.load(folder / file)), folder)
        session = current[file]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    return run


@contextlib.contextmanager
def _half_arithmetic(dtype: torch.dtype) -> Iterator[None]:
    """Torch's mixed precision, and bfloat16 tensors that NumPy can have."""
    original = torch.Tensor.numpy

    def numpy(self: torch.Tensor, **arguments: Any) -> NDArray[Any]:
        return original(self.float() if self.dtype in _HALVES.values() else self, **arguments)

    torch.Tensor.numpy = numpy  # type: ignore[method-assign,assignment]
    try:
        with torch.autocast("cpu", dtype=dtype):
            yield
    finally:
        torch.Tensor.numpy = original  # type: ignore[method-assign]
