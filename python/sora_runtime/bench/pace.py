"""How fast the machine is at the moment: one fixed chain of matrix products on the engine that runs the networks.

Neighbours on the same host slow a virtual machine by half for seconds or minutes, in no counter that a guest can read,
and everything that it runs by about the same factor. A profile says at which pace its rates hold, so an estimate that
reads the pace again is one of the machine as it is now.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sora_runtime.bench import micro_graphs as graphs
from sora_runtime.cost.profile import load_profile
from sora_runtime.engines.engine import TensorSpec
from sora_runtime.engines.onnxruntime import OnnxRuntimeEngine

ROWS, WIDTH = 256, 240  # 2 GFLOP over 16 MB of weights


class Pace:
    """Reads the pace again and again.

    Args:
        num_threads: of the engine.
    """

    def __init__(self, num_threads: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pace.onnx"
            file.write_bytes(graphs.products(ROWS, WIDTH, int8=False))
            self._engine = OnnxRuntimeEngine(file, num_threads=num_threads)
        specs = {**self._engine.inputs, **self._engine.outputs}
        self._run = self._engine.bind({name: filled(spec) for name, spec in specs.items()}).run
        self.seconds()

    def seconds(self) -> float:
        """Of the products now; the first of two runs finds the caches full of other things and is often longer."""
        taken = []
        for _ in range(2):
            start = time.perf_counter()
            self._run()
            taken.append(time.perf_counter() - start)
        return min(taken)

    def close(self) -> None:
        """Gives the engine back."""
        self._engine.close()


def filled(spec: TensorSpec) -> NDArray[Any]:
    """An input or output of a graph with numbers in it."""
    array = spec.empty()
    array[...] = graphs.filled(*spec.shape)
    return array


def pace_now() -> float | None:
    """Seconds of the products, the median of nine readings, which take about a fifth of a second.

    Returns:
        None where the user's profile is another machine's: its pace cannot be read here.

    Raises:
        InvalidRequest: `sora-bench calibrate` was not run.
    """
    profile = load_profile()
    if profile.elsewhere is not None:
        return None
    pace = Pace(profile.num_threads)
    try:
        return sorted(pace.seconds() for _ in range(9))[4]
    finally:
        pace.close()
