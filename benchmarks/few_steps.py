"""What distillation saves: wan-pocket-4step beside its teacher, clip by clip in one run, with adherence beside time.

python -m benchmarks.few_steps [--prompts 240] [--threads 2]      measure and record in results/few_steps.json

Every held-out prompt is drawn by every case from the same noise before the next prompt, so that whatever else the
machine does falls on all of them alike; ratios of their times are of this one run.
"""

import argparse
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sora_export.check import psnr
from sora_export.pocket.captions import Scene, held_out_prompts
from sora_export.pocket.detect import detect
from sora_export.pocket.score import ATTRIBUTES, wilson_interval
from sora_runtime import Runtime

RESULT = Path(__file__).parent / "results" / "few_steps.json"


@dataclass
class Case:
    """A model at a number of steps and a guidance scale, and what its clips were."""

    model: str
    num_inference_steps: int
    guidance_scale: float
    hits: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*ATTRIBUTES, "all"), 0))
    evaluations: int = 0
    denoise_seconds: list[float] = field(default_factory=list)
    total_seconds: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)

    def draw(self, runtime: Runtime, prompt: str, seed: int) -> Any:
        """One clip; its times and evaluations are kept."""
        clip = runtime.generate(
            prompt, seed=seed, num_inference_steps=self.num_inference_steps, guidance_scale=self.guidance_scale
        )
        self.evaluations = clip.receipt.evaluations.made
        self.denoise_seconds.append(clip.receipt.seconds.denoise)
        self.total_seconds.append(clip.receipt.seconds.total)
        return clip.frames

    def count(self, frames: Any, scene: Scene, reference: Any) -> None:
        """Score a clip against its prompt, and against the reference's clip from the same noise."""
        seen = detect(frames)
        right = {name: getattr(seen, name) == getattr(scene, name) for name in ATTRIBUTES}
        for name, value in (right | {"all": all(right.values())}).items():
            self.hits[name] += value
        self.psnr.append(psnr(reference, frames))

    def result(self, reference: "Case") -> dict[str, Any]:
        """The record of the case; times as medians and as ratios to the reference's."""
        count = len(self.psnr)
        denoise, total = statistics.median(self.denoise_seconds), statistics.median(self.total_seconds)
        same = self is reference
        return {
            "model": self.model,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "evaluations": self.evaluations,
            "accuracy": {
                name: {"accuracy": hits / count, "wilson_95": wilson_interval(hits, count)}
                for name, hits in self.hits.items()
            },
            "denoise_seconds": denoise,
            "total_seconds": total,
            "denoise_speedup": statistics.median(reference.denoise_seconds) / denoise,
            "total_speedup": statistics.median(reference.total_seconds) / total,
            "psnr_to_reference": None if same else float(np.median(self.psnr)),
        }


def cases() -> list[Case]:
    """The reference first; then the default, the teacher with as few steps, with and without guidance, the student."""
    teacher = [Case("wan-pocket", 50, 3.0), Case("wan-pocket", 20, 3.0)]
    few = [Case("wan-pocket", 4, 3.0), Case("wan-pocket", 4, 1.0)]
    return [*teacher, *few, Case("wan-pocket-4step", 4, 1.0)]


def measure(prompts: int = 240, num_threads: int | None = None) -> dict[str, Any]:
    """Draw every prompt in every case; seeds count up from 0."""
    chosen = cases()
    runtimes = {case.model: Runtime.load(case.model, num_threads=num_threads) for case in chosen}
    for case in chosen:
        runtimes[case.model].generate("a red circle", num_inference_steps=4)  # warms up
    for seed, (prompt, scene) in enumerate(held_out_prompts(prompts)):
        drawn = [case.draw(runtimes[case.model], prompt, seed) for case in chosen]
        for case, frames in zip(chosen, drawn, strict=True):
            case.count(frames, scene, drawn[0])
        if (seed + 1) % 20 == 0:
            print(f"{seed + 1} of {prompts} prompts", flush=True)
    receipt = runtimes["wan-pocket"].generate("a red circle", num_inference_steps=1).receipt
    return {
        "prompts": prompts,
        "cpu": receipt.machine.cpu,
        "num_threads": receipt.engine.num_threads,
        "cases": [case.result(chosen[0]) for case in chosen],
    }


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        "| model | steps | guidance | evaluations | colour | shape | motion | background | denoising | whole clip |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        shares = " | ".join(f"{case['accuracy'][name]['accuracy']:.1%}" for name in ATTRIBUTES)
        lines.append(
            f"| {case['model']} | {case['num_inference_steps']} | {case['guidance_scale']:g} | {case['evaluations']} "
            f"| {shares} | {case['denoise_speedup']:.1f}x | {case['total_speedup']:.1f}x |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, record, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=240, help="number of held-out prompts")
    parser.add_argument("--threads", type=int, help="of the engines; all cores unless told")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file to write")
    options = parser.parse_args()
    result = measure(options.prompts, options.threads)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
