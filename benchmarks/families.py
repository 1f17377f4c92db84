"""Every family x component x precision: built, compared with torch, and compiled for two GPUs.

The checkpoints are small and random, made by diffusers' own classes: what is measured is whether a graph computes what
its model does, and what rounding costs it, not how good the model is. bf16, fp8 and int8 are graphs for TensorRT, which
run here with every value rounded as the engine rounds it; beside bf16 stands torch's own error in bfloat16.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "export"))

from tiny_families import VARIANTS, Variant

from sora_export.build import Calibration
from sora_export.bundle_from_checkpoint import build_bundle
from sora_export.check import part_errors
from sora_export.convert_bundle import calibrate_bundle, convert_bundle
from sora_export.engine_from_onnx import EngineOptions
from sora_export.engines_of_bundle import build_engines
from sora_export.precision import Precision
from sora_export.trajectories import Prompt
from sora_runtime.engines.store import EngineStore

PRECISIONS = (Precision.BF16, Precision.FP8, Precision.INT8)
TARGETS = ("8.9", "12.0")
PROMPTS = ('a red circle moves left of "SALE"', "a blue square falls")


def measure_variant(variant: Variant, folder: Path, targets: tuple[str, ...] = TARGETS) -> dict[str, Any]:
    """Builds one model in float32 and for TensorRT-RTX in every precision.

    Args:
        variant: The model.
        folder: An empty folder to work in.
        targets: Compute capabilities to build engines for; none: only graphs.

    Returns:
        For each graph its component and, for each precision, the relative L2 to torch in float32 and what is known of
        its engines.
    """
    checkpoint = variant.save(folder / "checkpoint")
    bundle = build_bundle(checkpoint, folder / "fp32", [variant.size], [variant.num_frames], check_parity=False)
    calibration = Calibration([Prompt(text, _picture(folder, bundle)) for text in PROMPTS], 4)
    scales = calibrate_bundle(bundle, calibration.prompts, calibration.num_inference_steps, lambda message: None)
    graphs: dict[str, Any] = {}
    for part in part_errors(bundle):
        graphs[part.graph] = {"component": part.component, "fp32": {"relative_l2": part.error}}
    for precision in PRECISIONS:
        converted = convert_bundle(bundle, folder / precision, precision, "tensorrt_rtx", scales, lambda message: None)
        for part in part_errors(converted):
            graphs[part.graph][precision] = {"relative_l2": part.error, "torch": part.torch_error, "engines": []}
        if targets:
            options = EngineOptions("tensorrt_rtx", targets)
            for engine in build_engines(converted, options, EngineStore(folder / "engines"), lambda message: None):
                graphs[engine["graph"]][precision]["engines"].append(_engine(engine))
    return {"model": variant.name, "graphs": graphs}


def _picture(folder: Path, bundle: Path) -> Path | None:
    """A picture for a model that needs one."""
    import json

    import numpy as np
    from PIL import Image

    if "t2v" in json.loads((bundle / "bundle.json").read_bytes())["tasks"]:
        return None
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(coarse).resize((112, 60), Image.Resampling.BICUBIC).save(folder / "picture.png")
    return folder / "picture.png"


def _engine(record: Mapping[str, Any]) -> dict[str, Any]:
    fusion = record["report"]["fusion"]
    keys = ("attention_ops", "fused_attention", "quantised_ops", "quantised_run", "cast_layers", "layers")
    target = record["compute_capabilities"][0]
    return {"target": target, "size": record["size"], "seconds": record["build_seconds"]} | {
        key: fusion[key] for key in keys
    }


def measure() -> dict[str, Any]:
    """All variants, one after the other."""
    models = []
    for variant in VARIANTS:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            models.append(measure_variant(variant, Path(folder)))
        print(f"{variant.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return {"targets": list(TARGETS), "models": models}


def table(result: dict[str, Any]) -> str:
    """A line for each component: the worst of its graphs, and what its engines fused."""
    lines = [
        "| model | component | graphs | fp32 | bf16 (torch's own) | fp8 | int8 | engines | attention fused |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model in result["models"]:
        components = dict.fromkeys(graph["component"] for graph in model["graphs"].values())
        for component in components:
            graphs = [graph for graph in model["graphs"].values() if graph["component"] == component]
            lines.append(f"| {model['model']} | {component} | {' | '.join(_cells(graphs))} |")
    return "\n".join(lines)


def _cells(graphs: list[dict[str, Any]]) -> Iterable[str]:
    yield str(len(graphs))
    yield f"{max(graph['fp32']['relative_l2'] for graph in graphs):.0e}"
    worst = max(graphs, key=lambda graph: graph["bf16"]["relative_l2"] / graph["bf16"]["torch"])["bf16"]
    yield f"{worst['relative_l2']:.1e} ({worst['torch']:.1e})"
    for precision in ("fp8", "int8"):
        yield f"{max(graph[precision]['relative_l2'] for graph in graphs):.1e}"
    engines = [engine for graph in graphs for precision in PRECISIONS for engine in graph[precision]["engines"]]
    seconds = statistics.median(engine["seconds"] for engine in engines) if engines else 0.0
    yield f"{len(engines)}, {seconds:.1f} s each"
    half = [engine for graph in graphs for engine in graph["bf16"]["engines"]]
    counts = [sum(engine[key] or 0 for engine in half) for key in ("fused_attention", "attention_ops")]
    yield f"{counts[0]} of {counts[1]}" if counts[1] else "none to fuse"


if __name__ == "__main__":
    print(table(measure()))
