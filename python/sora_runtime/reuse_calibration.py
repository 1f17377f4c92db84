"""Learns for one model and setting how much step reuse it bears, and stores that in the bundle with what is lost.

Every policy is a line of settings from gentle to bold. Clips of the prompts are made without reuse, then with the
settings that a binary search along that line asks for, from the same noise; what is compared are their frames.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .errors import InvalidRequest
from .output import write_text
from .programs import reuse_key
from .request import resolve
from .reuse_fit import curve_of, plan_of, polynomial_of
from .reuse_record import ReuseCalibration, ReuseQuality, ReuseSettings
from .runtime import Runtime
from .sampling import SamplerProgram, StepReuse, apply_reuse

THRESHOLDS = tuple(float(value) for value in np.geomspace(1e-3, 4.0, 64))
INTERVALS = range(2, 17)


@dataclass(frozen=True)
class ClipAsk:
    """One clip to calibrate on; its seed is its place in the list."""

    prompt: str
    image: Path | None = None


@dataclass(frozen=True)
class Goal:
    """How far to go: the fewest evaluations at a quality, or the best quality at a share of the evaluations.

    Attributes:
        psnr: dB that the mean over the prompts keeps; None: the share decides.
        share: of the evaluations that may be made.
    """

    psnr: float | None = None
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise InvalidRequest(f"evaluations_share = {self.share} is outside 0 to 1; use 0.5 to halve them")
        if self.psnr is not None and not (math.isfinite(self.psnr) and self.psnr > 0.0):
            raise InvalidRequest(f"target_psnr = {self.psnr} is no number of decibels above 0; use 28")

    def met(self, quality: ReuseQuality) -> bool:
        """Whether a clip of this quality may be shown, or has become cheap enough."""
        if self.psnr is not None:
            return quality.psnr_mean is None or quality.psnr_mean >= self.psnr
        return quality.evaluations <= self.share * quality.all_evaluations


@dataclass
class Calibrator:
    """The clips without reuse of one setting, and what every setting of a policy is compared with.

    Attributes:
        runtime: of the bundle.
        clips: what to make.
        fields: of the request (`RequestFields`), for all clips; without prompt, seed, image and step reuse.
        progress: called with a sentence now and then.
    """

    runtime: Runtime
    clips: Sequence[ClipAsk]
    fields: Mapping[str, Any]
    progress: Callable[[str], None] = lambda _: None
    program: SamplerProgram = field(init=False)
    frames: list[NDArray[np.uint8]] = field(init=False, default_factory=list)
    norms: list[NDArray[np.void]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if not self.clips:
            raise InvalidRequest("there is no prompt to calibrate with; give one a line")
        first = {**self.fields, "image": self.clips[0].image}
        self._resolved = resolve(self.clips[0].prompt, first, self.runtime.bundle.manifest)
        self.program = self.runtime.program(self._resolved)
        for number, ask in enumerate(self.clips):
            self.progress(f"clip {number + 1} of {len(self.clips)} without reuse")
            clip = self._generate(number, ask, StepReuse("easycache"))  # of threshold 0: it measures alone
            assert clip.norms is not None
            self.frames.append(clip.frames)
            self.norms.append(clip.norms)

    def _generate(self, number: int, ask: ClipAsk, reuse: StepReuse) -> Any:
        return self.runtime.generate(
            ask.prompt, seed=number, image=ask.image, **self.fields, step_reuse=reuse, force_step_reuse=True
        )

    def measure(self, reuse: StepReuse) -> ReuseQuality:
        """Makes every clip with these settings and compares it with the one without."""
        evaluations, decibels, similar = [], [], []
        for number, (ask, frames) in enumerate(zip(self.clips, self.frames, strict=True)):
            clip = self._generate(number, ask, reuse)
            evaluations.append(clip.receipt.evaluations.made)
            decibels.append(psnr(frames, clip.frames))
            similar.append(ssim(frames, clip.frames))
        finite = [value for value in decibels if math.isfinite(value)]
        quality = ReuseQuality(
            prompts=len(self.clips),
            evaluations=float(np.mean(evaluations)),
            all_evaluations=self.program.all_evaluations,
            psnr_mean=round(float(np.mean(finite)), 3) if finite else None,
            psnr_min=round(min(finite), 3) if finite else None,
            ssim_mean=round(float(np.mean(similar)), 5),
        )
        level = "identical" if quality.psnr_mean is None else f"{quality.psnr_mean:.1f} dB"
        self.progress(f"{_describe(reuse)}: {quality.evaluations:.1f} evaluations, {level}")
        return quality

    def evaluations(self, reuse: StepReuse) -> float | None:
        """Network calls of a clip where the table tells them; None where the run decides."""
        program = apply_reuse(self.program, reuse)
        return float(program.evaluations) if program.reuse.criterion == "none" else None

    def line(self, base: StepReuse) -> list[StepReuse]:
        """A policy's settings from gentle to bold, fitted to what the clips without reuse have shown."""
        if base.policy in ("easycache", "teacache", "magcache"):
            if base.policy == "teacache":
                base = replace(base, polynomial=polynomial_of(self.norms, base.warm_up))
            elif base.policy == "magcache":
                base = replace(base, ratios=curve_of(self.norms, residual=base.residual))
            return [replace(base, threshold=threshold) for threshold in THRESHOLDS]
        if base.policy == "taylorseer":
            return [replace(base, interval=interval) for interval in INTERVALS]
        if base.policy == "unconditional":
            return [replace(base, unconditional_every=every) for every in INTERVALS]
        most = len(self.program.rows) - base.warm_up - 1
        plans = (plan_of(self.program.rows, self.norms, base.warm_up, count) for count in range(1, most + 1))
        return [replace(base, reused=plan) for plan in plans if plan is not None]

    def search(self, base: StepReuse, goal: Goal) -> ReuseCalibration:
        """The boldest settings that keep the goal's quality, or the gentlest that keep its share.

        Raises:
            InvalidRequest: no settings of the policy meet the goal.
        """
        line = self.line(base)
        found: dict[int, ReuseQuality] = {}
        low, high = 0, len(line)  # of the first settings that are cheap enough, or that are no longer good enough
        while low < high:
            middle = (low + high) // 2
            if self._beyond(line[middle], goal, found, middle):
                high = middle
            else:
                low = middle + 1
        chosen = low if goal.psnr is None else low - 1
        if not 0 <= chosen < len(line):
            wanted = f"{goal.share:.0%} of the evaluations" if goal.psnr is None else f"{goal.psnr:g} dB"
            raise InvalidRequest(
                f"no settings of {base.policy} reach {wanted} here; ask for less or use another policy"
            )
        quality = found[chosen] if chosen in found else self.measure(line[chosen])
        return ReuseCalibration(
            key=reuse_key(self._resolved, self.program),
            settings=ReuseSettings(**asdict(line[chosen])),
            quality=quality,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _beyond(self, reuse: StepReuse, goal: Goal, found: dict[int, ReuseQuality], number: int) -> bool:
        known = self.evaluations(reuse)
        if goal.psnr is None and known is not None:  # the table tells: no clip need be made
            return known <= goal.share * self.program.all_evaluations
        found[number] = self.measure(reuse)
        return goal.met(found[number]) == (goal.psnr is None)


def store(bundle: Bundle, calibration: ReuseCalibration) -> None:
    """Enter a calibration in bundle.json, in the place of an earlier one of the same policy and setting.

    Raises:
        OutputError: the file cannot be written; it is as it was then.
    """
    file = bundle.root / "bundle.json"
    manifest = json.loads(file.read_bytes())
    entry = calibration.model_dump(mode="json")

    def name(record: Mapping[str, Any]) -> tuple[Any, Any]:
        return record["key"], record["settings"]["policy"]

    others = [record for record in manifest.get("step_reuse", []) if name(record) != name(entry)]
    manifest["step_reuse"] = [*others, entry]
    write_text(file, json.dumps(manifest, indent=1, allow_nan=False) + "\n")


def psnr(want: NDArray[np.uint8], got: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio over all frames and channels, in dB; infinity for equal clips."""
    error = float(np.mean((want.astype(np.float64) - got) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(want: NDArray[np.uint8], got: NDArray[np.uint8]) -> float:
    """Structural similarity of the luma (Wang et al. 2004 eq. 13, uniform windows of 7 x 7), the mean over frames."""
    weights = np.array([0.299, 0.587, 0.114])
    values = []
    for a, b in zip(want @ weights, got @ weights, strict=True):
        mean_a, mean_b = _windows(a), _windows(b)
        covariance = _windows(a * b) - mean_a * mean_b
        variances = _windows(a * a) - mean_a**2 + _windows(b * b) - mean_b**2
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        values.append(np.mean(luminance * (2 * covariance + c2) / (variances + c2)))
    return float(np.mean(values))


def _windows(image: NDArray[np.float64], size: int = 7) -> NDArray[np.float64]:
    """The mean of every window of a picture [height, width]."""
    sums = np.pad(image, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    total = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    return np.asarray(total / size**2)


def _describe(reuse: StepReuse) -> str:
    knobs = {
        "taylorseer": f"interval {reuse.interval}",
        "unconditional": f"one in {reuse.unconditional_every}",
        "plan": f"{len(reuse.reused)} rows",
    }
    return f"{reuse.policy}, {knobs.get(reuse.policy, f'threshold {reuse.threshold:.4g}')}"
