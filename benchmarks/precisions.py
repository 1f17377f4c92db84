"""wan-pocket in every precision: size, speed where it runs here, and what its clips lose.

int8 on ONNX Runtime runs as it is, in turns with fp32. Graphs for TensorRT run as a reference: float32 arithmetic with
every value rounded and quantised as the engine does it, so their quality is measured and their speed is not.
"""

import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sora_export.bundle_from_checkpoint import build_bundle
from sora_export.check import emulate_bundle, psnr
from sora_export.convert_bundle import calibrate_bundle, convert_bundle
from sora_export.engine_from_onnx import EngineOptions
from sora_export.engines_of_bundle import build_engines
from sora_export.pocket.captions import held_out_prompts
from sora_export.pocket.score import ATTRIBUTES, score
from sora_export.precision import EngineName, Precision
from sora_export.trajectories import read_prompts
from sora_runtime import Runtime
from sora_runtime.bundle import find_bundle
from sora_runtime.engines.store import EngineStore

PROMPTS = Path(__file__).parent / "calibration_prompts.txt"
BUILDS: list[tuple[Precision, EngineName]] = [
    (Precision.INT8, "onnxruntime"),
    (Precision.BF16, "tensorrt_rtx"),
    (Precision.FP8, "tensorrt_rtx"),
    (Precision.INT8, "tensorrt_rtx"),
]
TARGETS = ("8.9", "12.0")
SCORED = 240
COMPARED = 8
ROUNDS = 9


def measure() -> dict[str, Any]:
    """Builds, scores, and then times fp32 against int8 clip by clip."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shipped = find_bundle("wan-pocket")
        defaults = json.loads((shipped / "bundle.json").read_bytes())["facts"]["defaults"]
        size = [(defaults["height"], defaults["width"])]
        fp32 = build_bundle(shipped, folder / "fp32", size, [defaults["num_frames"]], tasks=["t2v"], check_parity=False)
        scales = calibrate_bundle(fp32, read_prompts(PROMPTS), None, print)
        rows = [{"precision": "fp32", "engine": "onnxruntime", "bytes": _weight_bytes(fp32), **_quality(fp32, fp32)}]
        for precision, engine in BUILDS:
            bundle = convert_bundle(fp32, folder / f"{precision}-{engine}", precision, engine, scales, print)
            row: dict[str, Any] = {"precision": precision, "engine": engine}
            if engine == "onnxruntime":
                row |= {"bytes": _weight_bytes(bundle), **_quality(fp32, bundle)}
                row["seconds"] = _paired(fp32, bundle)
            else:
                options = EngineOptions("tensorrt_rtx", TARGETS)
                row["engines"] = _engine_bytes(build_engines(bundle, options, EngineStore(folder / "engines"), print))
                subject = folder / f"{precision}-emulated"
                emulate_bundle(bundle, subject)
                row |= _quality(fp32, subject)
            rows.append(row)
            print(json.dumps(row), flush=True)
    return {"prompts": SCORED, "compared": COMPARED, "rounds": ROUNDS, "targets": list(TARGETS), "rows": rows}


def _weight_bytes(bundle: Path) -> int:
    """Bytes that the graphs read, each tensor once."""
    import onnx_ir as ir

    seen = {}
    for graph in bundle.glob("*.onnx"):
        for value in ir.load(graph).graph.initializers.values():
            data = value.const_value
            if isinstance(data, ir.ExternalTensor):
                seen[data.location, data.offset] = data.nbytes
    return sum(seen.values())


def _quality(reference: Path, subject: Path) -> dict[str, Any]:
    """Accuracy of every attribute over the held-out prompts, and PSNR against fp32 from the same noise."""
    with Runtime.load(subject) as runtime:
        scores = score(held_out_prompts(SCORED), lambda text, _, seed: runtime.generate(text, seed=seed).frames, 0)
        found = {name: scores["accuracy"][name]["accuracy"] for name in (*ATTRIBUTES, "all")}
        decibels = []
        if subject != reference:
            with Runtime.load(reference) as exact:
                for seed, (text, _) in enumerate(held_out_prompts(COMPARED)):
                    decibels.append(psnr(*(each.generate(text, seed=seed).frames for each in (exact, runtime))))
    return {"accuracy": found, "psnr": [round(value, 2) for value in decibels]}


def _paired(reference: Path, subject: Path) -> dict[str, float]:
    """Seconds of a warm clip, in turns; the ratio is the median of each round's."""
    with Runtime.load(reference) as exact, Runtime.load(subject) as rounded:
        seconds: dict[str, list[float]] = {"fp32": [], "int8": []}
        for seed in range(ROUNDS + 1):
            for name, runtime in (("fp32", exact), ("int8", rounded)):
                clip = runtime.generate("a red circle moving left on a navy background", seed=seed)
                seconds[name].append(clip.receipt.seconds.total)
    pairs = list(zip(seconds["fp32"][1:], seconds["int8"][1:], strict=True))
    return {
        "fp32": statistics.median(pair[0] for pair in pairs),
        "int8": statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def _engine_bytes(records: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Plan sizes by target and graph."""
    sizes: dict[str, dict[str, int]] = {}
    for record in records:
        sizes.setdefault(record["compute_capabilities"][0], {})[record["graph"]] = record["size"]
    return sizes


def table(result: dict[str, Any]) -> str:
    """One line for each build."""
    header = "| build | colour / background / motion / shape | PSNR, worst (median) | size | a clip |"
    lines = [header, "|---|---|---|---|---|"]
    for row in result["rows"]:
        accuracy = " / ".join(f"{row['accuracy'][name]:.1%}" for name in ("colour", "background", "motion", "shape"))
        quality = f"{min(row['psnr']):.1f} ({np.median(row['psnr']):.1f}) dB" if row["psnr"] else "-"
        build = f"{row['precision']}, {row['engine']}"
        lines.append(f"| {build} | {accuracy} | {quality} | {_size(row)} | {_seconds(row, result)} |")
    return "\n".join(lines)


def _size(row: Mapping[str, Any]) -> str:
    if "bytes" in row:
        return f"{row['bytes'] / 1e6:.1f} MB of weights"
    plans = [f"{sum(graphs.values()) / 1e6:.1f} MB (SM{target.replace('.', '')})" for target, graphs in _plans(row)]
    return "plans " + ", ".join(plans)


def _plans(row: Mapping[str, Any]) -> list[tuple[str, dict[str, int]]]:
    return list(row["engines"].items())


def _seconds(row: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    if "engines" in row:
        return "not run: no GPU"
    paired = next(other["seconds"] for other in result["rows"] if "seconds" in other)
    if row["precision"] == "fp32":
        return f"{paired['fp32']:.2f} s"
    return f"{paired['int8']:.2f} s, {paired['ratio']:.2f} times faster"


if __name__ == "__main__":
    print(table(measure()))
