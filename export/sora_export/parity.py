"""Compares graphs run by ONNX Runtime on the CPU with the torch modules they were made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from sora_export.families import Arrays, Component, RunGraph
from sora_runtime.errors import EngineError

MAX_RELATIVE_L2 = 1e-3
"""Two float32 engines differ by 1e-6 to 1e-5 on these networks (sums in another order); a wrong
weight, axis or cache by far more than this."""


def relative_l2(got: NDArray[Any], want: NDArray[Any]) -> float:
    """|got - want| / |want| over all elements, in float64; infinity where anything is not finite."""
    if got.shape != want.shape or not (np.isfinite(got).all() and np.isfinite(want).all()):
        return float("inf")
    reference = want.astype(np.float64).ravel()
    error = float(np.linalg.norm(got.astype(np.float64).ravel() - reference))
    return error / max(float(np.linalg.norm(reference)), 1e-30)


def against() -> str:
    """What the graphs are compared with, for bundle.json."""
    return f"torch {torch.__version__.split('+')[0]} / diffusers {diffusers.__version__}"


def measure(component: Component, reference: torch.nn.Module, locate: Callable[[str], Path]) -> dict[str, float]:
    """The relative L2 error of every graph of a component.

    Args:
        component: The component; its graphs have been written.
        reference: Its torch module with the real weights, float32.
        locate: Gives the path at which a graph file lies.

    Raises:
        EngineError: A graph is further from torch than MAX_RELATIVE_L2.
    """
    with torch.no_grad():
        pairs = component.compare(reference, graph_runner(locate))
    errors = {file: relative_l2(*pair) for file, pair in pairs.items()}
    for file, error in errors.items():
        if not error <= MAX_RELATIVE_L2:
            raise EngineError(
                f"{file} differs from torch by {error:.2g} (relative L2), more than "
                f"{MAX_RELATIVE_L2}; the export is wrong for this checkpoint and nothing was written"
            )
    return errors


def graph_runner(locate: Callable[[str], Path]) -> RunGraph:
    """A function that runs graph files; it holds one session, as a weight may fill the memory."""
    current: dict[str, onnxruntime.InferenceSession] = {}

    def run(file: str, feeds: Arrays) -> Arrays:
        if file not in current:
            current.clear()
            current[file] = onnxruntime.InferenceSession(str(locate(file)), providers=["CPUExecutionProvider"])
        session = current[file]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    return run
