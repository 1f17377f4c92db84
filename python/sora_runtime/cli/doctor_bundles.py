"""wan-pocket's engines for the GPU at hand, for `sora-bench doctor`; needs the extra `export`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from sora_export.build import BuildRequest, Calibration, build
from sora_export.engine_from_onnx import EngineOptions
from sora_export.precision import Precision
from sora_export.tensorrt_library import Library
from sora_export.trajectories import Prompt

PROMPTS = ("a red circle moving left on a navy background", "a blue star spinning on a black background")
STEPS = 4


def pocket_for(precision: str, capability: str, folder: Path) -> Path:
    """Builds the bundle and its engines, which land in the user's engine store.

    Args:
        precision: of `Precision`.
        capability: compute capability, such as ``8.9``.
        folder: where the bundle lies afterwards.

    Raises:
        EngineError: no library that builds engines is installed, or it refuses a graph.
        OutputError: something cannot be written.
    """
    from sora_runtime.bundle import find_bundle

    library: Library = "tensorrt_rtx" if find_spec("tensorrt_rtx") is not None else "tensorrt"
    chosen = Precision(precision)
    options = EngineOptions(library, (capability,) if library == "tensorrt_rtx" else ())
    calibration = Calibration([Prompt(text) for text in PROMPTS], STEPS) if chosen.quantised else None
    request = BuildRequest(
        str(find_bundle("wan-pocket")),
        folder / f"wan-pocket-{precision}",
        sizes=[(64, 64)],
        num_frames=[25],
        tasks=["t2v"],
        precision=chosen,
        engine=library,
        calibration=calibration,
        check_parity=False,
        engine_options=options,
    )
    return build(request)
