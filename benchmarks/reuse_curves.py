"""Step reuse on wan-pocket at 50 steps: quality against evaluations for every policy, and what halving them costs.

    python -m benchmarks.reuse_curves [--clips 8] [--prompts 240] [--threads N] [--out benchmarks/results/reuse.json]

Policies that learn do so on benchmarks/calibration_prompts.txt; every figure is of held-out prompts, against the same
clip of the same noise without reuse. Fewer steps of the solver are the rival that needs no reuse at all.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sora_export.pocket.captions import held_out_prompts
from sora_export.pocket.score import ATTRIBUTES, score
from sora_export.trajectories import read_prompts
from sora_runtime import Runtime, StepReuse
from sora_runtime.reuse_calibration import Calibrator, ClipAsk, Goal, psnr, ssim

ROOT = Path(__file__).parent
STEPS = 50
THRESHOLDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
SHARES = (0.8, 0.65, 0.5, 0.4, 0.3)
FEWER_STEPS = (40, 33, 25, 20, 15)
# Name of a curve, the settings it begins with, and how its points are found.
RUN_TIME = {
    "easycache": StepReuse("easycache"),
    "easycache, residual (the paper's)": StepReuse("easycache", residual=True),
    "easycache, order 1": StepReuse("easycache", order=1),
    "teacache on the input": StepReuse("teacache"),
}
PLANNED = {
    "magcache": StepReuse("magcache"),
    "magcache, residual (the paper's)": StepReuse("magcache", residual=True),
    "taylorseer, order 0": StepReuse("taylorseer"),
    "taylorseer, order 1": StepReuse("taylorseer", order=1),
    "taylorseer, order 2": StepReuse("taylorseer", order=2),
    "learnt plan": StepReuse("plan"),
    "learnt plan, order 1": StepReuse("plan", order=1),
    "unconditional branch alone": StepReuse("unconditional"),
}


def points(calibrator: Calibrator) -> Iterator[tuple[str, StepReuse]]:
    """Every setting of every curve; those of one evaluation count once."""
    for name, base in RUN_TIME.items():
        fitted = calibrator.line(base)[0]
        yield from ((name, replace(fitted, threshold=threshold)) for threshold in THRESHOLDS)
    for name, base in PLANNED.items():
        line = calibrator.line(base)
        counts = [calibrator.evaluations(reuse) or 0.0 for reuse in line]
        chosen = {}
        for share in SHARES:
            within = [i for i, count in enumerate(counts) if count <= share * calibrator.program.all_evaluations]
            if within:
                chosen[counts[within[0]]] = line[within[0]]
        yield from ((name, reuse) for reuse in chosen.values())


def compare(runtime: Runtime, texts: list[str], reference: list[Any], **fields: Any) -> dict[str, Any]:
    """A point of a curve: evaluations of a clip, and its quality against the clips without reuse."""
    clips = [runtime.generate(text, seed=seed, **fields) for seed, text in enumerate(texts)]
    decibels = [psnr(a, b.frames) for a, b in zip(reference, clips, strict=True)]
    return {
        "evaluations": float(np.mean([clip.receipt.evaluations.made for clip in clips])),
        "psnr_mean": round(float(np.mean(decibels)), 2),
        "psnr_min": round(min(decibels), 2),
        "ssim": round(float(np.mean([ssim(a, b.frames) for a, b in zip(reference, clips, strict=True)])), 5),
    }


def adherence(runtime: Runtime, prompts: int, **fields: Any) -> dict[str, float]:
    """Accuracy of every attribute over the held-out prompts."""
    found = score(
        held_out_prompts(prompts), lambda text, _, seed: runtime.generate(text, seed=seed, **fields).frames, 0
    )
    return {name: found["accuracy"][name]["accuracy"] for name in (*ATTRIBUTES, "all")}


def measure(clips: int, prompts: int, threads: int | None, record: Callable[[dict[str, Any]], None]) -> None:
    """Curves first, then what the calibrated policy costs in adherence; recorded as they come."""
    result: dict[str, Any] = {"steps": STEPS, "clips": clips, "prompts": prompts, "curves": {}}
    asks = [ClipAsk(prompt.text) for prompt in read_prompts(ROOT / "calibration_prompts.txt")]
    texts = [text for text, _ in held_out_prompts(clips)]
    with Runtime.load("wan-pocket", num_threads=threads) as runtime:
        full = {"num_inference_steps": STEPS}
        reference = [runtime.generate(text, seed=seed, **full).frames for seed, text in enumerate(texts)]
        calibrator = Calibrator(runtime, asks, full, print)
        result["all_evaluations"] = calibrator.program.all_evaluations
        for steps in FEWER_STEPS:
            point = compare(runtime, texts, reference, num_inference_steps=steps)
            result["curves"].setdefault("fewer steps", []).append({"steps": steps, **point})
        for name, reuse in points(calibrator):
            point = compare(runtime, texts, reference, **full, step_reuse=reuse, force_step_reuse=True)
            result["curves"].setdefault(name, []).append({"threshold": reuse.threshold, **point})
            record(result)
        chosen = calibrator.search(StepReuse("easycache"), Goal(share=0.5))
        settings = StepReuse("easycache", threshold=chosen.settings.threshold)
        reused = {**full, "step_reuse": settings, "force_step_reuse": True}
        result["calibrated"] = {
            "policy": "easycache",
            "threshold": settings.threshold,
            **compare(runtime, texts, reference, **reused),
        }
        record(result)
        result["calibrated"]["adherence"] = adherence(runtime, prompts, **reused)
        record(result)
        result["calibrated"]["adherence_without"] = adherence(runtime, prompts, **full)
        record(result)


def table(result: dict[str, Any]) -> str:
    """The curves in Markdown: a line a point."""
    lines = [
        f"| policy | evaluations of {result['all_evaluations']} | PSNR dB, mean of {result['clips']} | lowest | SSIM |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {point['evaluations']:.1f} | {point['psnr_mean']:.1f} | {point['psnr_min']:.1f} | "
        f"{point['ssim']:.4f} |"
        for name, curve in result["curves"].items()
        for point in curve
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, record after every point, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8, help="held-out prompts of the curves")
    parser.add_argument("--prompts", type=int, default=240, help="held-out prompts of the adherence")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "reuse.json")
    options = parser.parse_args()

    def record(result: dict[str, Any]) -> None:
        options.out.write_text(json.dumps(result, indent=2) + "\n")

    measure(options.clips, options.prompts, options.threads, record)
    print(table(json.loads(options.out.read_text())))


if __name__ == "__main__":
    main()
