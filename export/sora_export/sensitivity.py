"""Finds the layers that lose most by quantisation, so that they keep their precision."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sora_export.calibration import CalibrationResult, session_of
from sora_export.emulation import emulated
from sora_export.precision import EngineName, Part, Precision
from sora_export.quantize_onnx import to_precision

Feeds = Mapping[str, NDArray[Any]]

MAX_ERROR = {Precision.INT8: 0.03, Precision.FP8: 0.06, Precision.NVFP4: 0.2}
"""Relative L2 error of one evaluation beyond which the worst layers are kept: about twice what a network without
outliers loses in that format, weights and activations together."""


def sensitivity(
    graph: Path, feeds: Sequence[Feeds], calibration: CalibrationResult, precision: Precision, part: Part
) -> dict[str, float]:
    """The relative L2 error of a graph's first output when layers of one kind alone are quantised.

    A kind are the layers of the same name in all blocks (`blocks.*.ffn.net.2.weight`), over which a
    network of forty blocks is measured in about ten evaluations. The graph is run as TensorRT would
    compute it, emulated in float32.

    Args:
        graph: The .onnx file of a float32 bundle.
        feeds: Some evaluations; a few of different timesteps suffice.
        calibration: Of that graph.
        precision: fp8, int8 or nvfp4.
        part: Which component the graph is of.
    """
    kinds: dict[str, set[str]] = {}
    for name in calibration.amax:
        kinds.setdefault(re.sub(r"\.\d+\.", ".*.", name, count=1), set()).add(name)
    half = _run(graph, feeds, None, Precision.BF16, part)
    errors = {}
    for kind, names in kinds.items():
        only = replace(calibration, keep=frozenset(set(calibration.amax) - names))
        errors[kind] = _relative_l2(_run(graph, feeds, only, precision, part), half)
    return errors


def keep_sensitive(
    graph: Path,
    feeds: Sequence[Feeds],
    calibration: CalibrationResult,
    precision: Precision,
    part: Part,
    max_error: float | None = None,
) -> CalibrationResult:
    """`calibration` with the worst kinds of layers kept, until the others together lose at most `max_error`.

    The errors of layers are independent roundings, so they add in squares.
    """
    limit = MAX_ERROR[precision] if max_error is None else max_error
    errors = sensitivity(graph, feeds, calibration, precision, part)
    kept = set(calibration.keep)
    for kind in sorted(errors, key=lambda name: -errors[name]):
        if sum(error**2 for error in errors.values()) <= limit**2:
            break
        errors[kind] = 0.0
        kept |= {name for name in calibration.amax if re.sub(r"\.\d+\.", ".*.", name, count=1) == kind}
    return replace(calibration, keep=frozenset(kept))


def _run(
    graph: Path, feeds: Sequence[Feeds], calibration: CalibrationResult | None, precision: Precision, part: Part
) -> list[NDArray[np.float32]]:
    engine: EngineName = "tensorrt"
    model = to_precision(
        ir.load(graph),
        precision,
        engine=engine,
        part=part,
        calibration=calibration,
        root=graph.parent,
        data_file=f".sensitivity.{precision}.safetensors",
    )
    try:
        session = session_of(emulated(model), graph.parent)
        return [session.run(None, dict(feed))[0] for feed in feeds]
    finally:
        (graph.parent / f".sensitivity.{precision}.safetensors").unlink(missing_ok=True)


def _relative_l2(found: Sequence[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]]) -> float:
    lost = sum(float(np.sum(np.square(a.astype(np.float64) - b))) for a, b in zip(found, expected, strict=True))
    return float(np.sqrt(lost / sum(float(np.sum(np.square(b.astype(np.float64)))) for b in expected)))
