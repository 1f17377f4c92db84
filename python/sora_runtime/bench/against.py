"""Clips made here against what the machine's profile had predicted of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from sora_runtime.bench.pace import pace_now
from sora_runtime.cost.profile import load_profile
from sora_runtime.errors import InvalidRequest
from sora_runtime.runtime import Runtime

STEPS = (2, 5, 10, 20, 40)
REPEATS = 3  # of each; the median counts


@dataclass(frozen=True)
class Measured:
    """One clip, made `REPEATS` times; seconds of wall clock."""

    what: str
    p10: float
    p50: float
    p90: float
    seconds: float
    origin: str

    @property
    def error(self) -> float:
        """Relative to the measurement; above 0: predicted too long."""
        return self.p50 / self.seconds - 1.0


def measure(bundle: str) -> Iterator[Measured]:
    """Make clips of a bundle's first shape at several step counts, with and without guidance.

    Predictions are of the machine at the pace read just before.

    Raises:
        InvalidRequest: this machine has no profile for all its threads.
        BundleError, EngineError: the bundle cannot be opened or run.
    """
    calibrated = load_profile().constants["pace"]
    with Runtime.load(bundle) as runtime:
        if runtime.bundle.manifest.tasks[0] != "t2v":
            raise InvalidRequest(f"'{bundle}' makes clips from a picture; give a bundle that takes a prompt alone")
        prompt = "a red circle moving left on a navy background"
        runtime.generate(prompt, num_inference_steps=1)  # engines are loaded, the prompt is cached
        for steps in STEPS:
            slower = (pace_now() or calibrated) / calibrated
            for scale in (1.0, 3.0):
                clips = [
                    runtime.generate(prompt, num_inference_steps=steps, guidance_scale=scale).receipt
                    for _ in range(REPEATS)
                ]
                predicted = clips[-1].predicted
                if predicted is None:
                    raise InvalidRequest(
                        "the profile is of another machine or other threads; run `sora-bench calibrate`"
                    )
                yield Measured(
                    what=f"{steps} steps{' with guidance' if scale > 1 else ''}",
                    p10=predicted.seconds.p10 * slower,
                    p50=predicted.seconds.p50 * slower,
                    p90=predicted.seconds.p90 * slower,
                    seconds=statistics.median(clip.seconds.total for clip in clips),
                    origin=predicted.origin,
                )
