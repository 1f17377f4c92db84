"""Step reuse on wan-pocket at 50 steps: quality against evaluations for every policy, and what halving them costs.

    python -m benchmarks.reuse_curves [--part curves|adherence|all] [--clips 8] [--prompts 240] [--threads N]
        [--out benchmarks/results/reuse_curves.json]

Policies that learn do so on benchmarks/calibration_prompts.txt; every figure is of held-out prompts, against the same
clip of the same noise without reuse. Fewer steps of the solver are the rival that needs no reuse at all.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
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
THRESHOLDS = (0.01, 0.02, 0.04, 0.08)
SHARES = (0.65, 0.5, 0.35)
_NEAR = (0.75, 0.5, 0.35)  # shares of the evaluations at which the table shows the curves
FEWER_STEPS = (33, 25, 17, 12)
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
    finite = [value for value in decibels if value != float("inf")]
    return {
        "evaluations": float(np.mean([clip.receipt.evaluations.made for clip in clips])),
        "identical": len(decibels) - len(finite),
        "psnr_mean": round(float(np.mean(finite)), 2) if finite else None,  # of those that are not identical
        "psnr_min": round(min(finite), 2) if finite else None,
        "ssim": round(float(np.mean([ssim(a, b.frames) for a, b in zip(reference, clips, strict=True)])), 5),
    }


def curves(runtime: Runtime, clips: int, record: Callable[[dict[str, Any]], None]) -> None:
    """Every curve on the same held-out clips; recorded point by point."""
    texts = [text for text, _ in held_out_prompts(clips)]
    full = {"num_inference_steps": STEPS}
    reference = [runtime.generate(text, seed=seed, **full).frames for seed, text in enumerate(texts)]
    calibrator = calibrator_of(runtime)
    found: dict[str, list[Any]] = {"fewer steps": []}
    for steps in FEWER_STEPS:
        found["fewer steps"].append({"steps": steps, **compare(runtime, texts, reference, num_inference_steps=steps)})
    for name, reuse in points(calibrator):
        point = compare(runtime, texts, reference, **full, step_reuse=reuse, force_step_reuse=True)
        settings = {"threshold": reuse.threshold, "interval": reuse.interval, "every": reuse.unconditional_every}
        found.setdefault(name, []).append({**settings, **point})
        record({"clips": clips, "all_evaluations": calibrator.program.all_evaluations, "curves": found})


def adherence(runtime: Runtime, prompts: int, record: Callable[[dict[str, Any]], None]) -> None:
    """The calibrated policy at half the evaluations against none, prompt by prompt."""
    calibration = calibrator_of(runtime).search(StepReuse("easycache"), Goal(share=0.5))
    reuse = StepReuse("easycache", threshold=calibration.settings.threshold)
    found: dict[str, Any] = {"prompts": prompts, "calibration": calibration.model_dump(mode="json")}
    evaluations: list[int] = []

    def make(text: str, _scene: Any, seed: int, **fields: Any) -> Any:
        clip = runtime.generate(text, seed=seed, num_inference_steps=STEPS, **fields)
        evaluations.append(clip.receipt.evaluations.made)
        return clip.frames

    failed = []
    for name, fields in (("with", {"step_reuse": reuse, "force_step_reuse": True}), ("without", {})):
        evaluations.clear()
        scored = score(held_out_prompts(prompts), partial(make, **fields), 0)
        accuracy = {each: scored["accuracy"][each]["accuracy"] for each in (*ATTRIBUTES, "all")}
        found[name] = {"evaluations": float(np.mean(evaluations)), "accuracy": accuracy}
        failed.append({entry["prompt"] for entry in scored["failures"]})
        record({"adherence": found})
    found["lost"], found["gained"] = len(failed[0] - failed[1]), len(failed[1] - failed[0])
    record({"adherence": found})


def calibrator_of(runtime: Runtime) -> Calibrator:
    """What learns on the prompts set aside for it."""
    asks = [ClipAsk(prompt.text) for prompt in read_prompts(ROOT / "calibration_prompts.txt")]
    return Calibrator(runtime, asks, {"num_inference_steps": STEPS}, print)


def table(result: dict[str, Any]) -> str:
    """The curves in Markdown, a line a policy; the plot; and what the calibrated policy costs in adherence."""
    lines = [
        f"PSNR in dB over {result['clips']} held-out clips (the worst clip's) at so many of "
        f"{result['all_evaluations']} evaluations:",
        "",
        "| policy | " + " | ".join(f"near {share:.0%}" for share in _NEAR) + " |",
        "|---" * (len(_NEAR) + 1) + "|",
    ]
    for name, curve in result["curves"].items():
        cells = [_nearest(curve, share * result["all_evaluations"]) for share in _NEAR]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "![quality against evaluations](benchmarks/results/reuse_curves.svg)"]
    found = result.get("adherence", {})
    if "without" in found:
        shares = [
            f"{found['without']['accuracy'][name]:.1%} to {found['with']['accuracy'][name]:.1%}" for name in ATTRIBUTES
        ]
        words = ", ".join(f"{name} {share}" for name, share in zip(ATTRIBUTES, shares, strict=True))
        lines += [
            "",
            f"`calibrate-reuse --policy easycache` at half the evaluations ({found['with']['evaluations']:.0f} made), "
            f"{found['prompts']} held-out prompts: {words}.",
        ]
    return "\n".join(lines)


def _nearest(curve: list[dict[str, Any]], evaluations: float) -> str:
    """The point of a curve that is within a tenth of all evaluations of so many, if there is one."""
    point = min(curve, key=lambda each: abs(each["evaluations"] - evaluations))
    if abs(point["evaluations"] - evaluations) > 10 or point["psnr_mean"] is None:
        return "-"
    return f"{point['psnr_mean']:.1f} ({point['psnr_min']:.1f}) at {point['evaluations']:.0f}"


def draw(result: dict[str, Any], path: Path) -> None:
    """Quality against evaluations, a line a policy; the rival that reuses nothing is dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, (name, curve) in enumerate(result["curves"].items()):
        known = sorted((point["evaluations"], point["psnr_mean"]) for point in curve if point["psnr_mean"] is not None)
        line = "--" if index == 0 else "-" if index <= 10 else ":"  # there are ten colours
        style = {"color": "black" if index == 0 else f"C{(index - 1) % 10}", "linestyle": line}
        marker = "os^vD*"[index // 3 % 6]
        axes.plot(*zip(*known, strict=True), marker=marker, markersize=4, linewidth=1.2, label=name, **style)
    axes.set_xlabel(f"evaluations a clip, of {result['all_evaluations']}")
    axes.set_ylabel("PSNR against the clip without reuse, dB")
    axes.set_title("wan-pocket, 50 steps: what each policy of step reuse keeps", fontsize=11)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, record after every point, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("curves", "adherence", "all"), default="all")
    parser.add_argument("--clips", type=int, default=8, help="held-out prompts of the curves")
    parser.add_argument("--prompts", type=int, default=240, help="held-out prompts of the adherence")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "reuse_curves.json")
    options = parser.parse_args()

    def record(found: dict[str, Any]) -> None:
        before = json.loads(options.out.read_text()) if options.out.exists() else {}
        options.out.write_text(json.dumps({**before, "steps": STEPS, **found}, indent=2) + "\n")

    with Runtime.load("wan-pocket", num_threads=options.threads) as runtime:
        if options.part != "adherence":
            curves(runtime, options.clips, record)
            found = json.loads(options.out.read_text())
            draw(found, options.out.with_suffix(".svg"))
            print(table(found))
        if options.part != "curves":
            adherence(runtime, options.prompts, record)


if __name__ == "__main__":
    main()
