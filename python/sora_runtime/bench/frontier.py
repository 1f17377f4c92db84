"""From measured settings to presets: which points of a frontier to keep under a name, and their entry in a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sora_runtime.bench.frontier_record import Constraints, CostAxis, Outcome, Point
from sora_runtime.bundle import Bundle
from sora_runtime.errors import InvalidRequest
from sora_runtime.output import write_text
from sora_runtime.presets import Preset, PresetCost, PresetQuality


@dataclass(frozen=True)
class Loss:
    """What a preset may lose against the reference: adherence, or dB of its frames where there is no detector."""

    adherence: float
    psnr: float

    def within(self, outcome: Outcome, reference: Outcome) -> bool:
        """Whether an outcome loses no more."""
        if outcome.adherence is None or reference.adherence is None:
            return outcome.fidelity >= self.psnr
        return outcome.adherence >= reference.adherence - self.adherence - 1e-9  # of a sum of shares


# Of the standard: two points of adherence and 30 dB are what `sora-bench check` lets a precision lose.
LOSSES = {"draft": Loss(0.10, 20.0), "standard": Loss(0.02, 30.0)}


def choose(points: Sequence[Point], reference: Outcome, constraints: Constraints, cost: CostAxis) -> dict[str, Point]:
    """The points to keep as presets, all of them within the constraints.

    `draft` is the cheapest that loses little enough to be worth a look, or the cheapest at all where the constraints
    bound the quality; `standard` the cheapest that nobody would tell from the reference, `best` the one of the highest
    quality. Where none is cheap enough for a name, the next better one stands in.

    Raises:
        InvalidRequest: no point keeps the constraints.
    """
    kept = [point for point in points if constraints.kept(point.outcome)]
    if not kept:
        raise InvalidRequest(_impossible(points, constraints))

    def cheapest(of: Sequence[Point]) -> Point:
        return min(of, key=lambda each: (cost(each.outcome), -each.outcome.quality))

    best = min(kept, key=lambda each: (-each.outcome.quality, cost(each.outcome)))
    bounded = constraints.min_adherence is not None or constraints.min_psnr is not None
    standard = cheapest([p for p in kept if LOSSES["standard"].within(p.outcome, reference)] or [best])
    drafts = [p for p in kept if bounded or LOSSES["draft"].within(p.outcome, reference)]
    return {"draft": cheapest(drafts or [standard]), "standard": standard, "best": best}


def _impossible(points: Sequence[Point], constraints: Constraints) -> str:
    best = max((point.outcome for point in points), key=lambda each: each.quality)
    cheapest = min(point.outcome.usd_per_second for point in points)
    level = f"{best.fidelity:.1f} dB" if best.adherence is None else f"adherence {best.adherence:.3f}"
    return (
        f"none of {len(points)} settings keeps {constraints}: the best has {level} at {best.usd_per_second:.3g} USD a "
        f"second, the cheapest takes {cheapest:.3g}; ask for less, or let more be measured with --runs"
    )


@dataclass(frozen=True)
class Measured:
    """The kind of clips that points were measured on, and where.

    Attributes:
        task: t2v or i2v.
        size: height, width and frames.
        machine: as `sora_runtime.machine.Machine.name` has it.
        usd_per_hour: of the machine.
    """

    task: Literal["t2v", "i2v"]
    size: tuple[int, int, int]
    machine: str
    usd_per_hour: float

    def preset(self, point: Point) -> Preset:
        """The record of a point."""
        outcome, (height, width, num_frames) = point.outcome, self.size
        return Preset(
            settings=dict(point.setting.fields),
            bundle=point.setting.bundle,
            quality=PresetQuality(
                prompts=outcome.prompts,
                adherence=outcome.adherence,
                psnr_mean=outcome.psnr_mean,
                ssim_mean=outcome.ssim_mean,
                flicker=outcome.flicker,
            ),
            cost=PresetCost(
                machine=self.machine,
                price_per_hour=self.usd_per_hour,
                seconds_per_clip=outcome.seconds_per_clip,
                usd_per_second=outcome.usd_per_second,
                evaluations=outcome.evaluations,
            ),
            task=self.task,
            height=height,
            width=width,
            num_frames=num_frames,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def store_presets(bundle: Bundle, presets: Mapping[str, Preset]) -> None:
    """Enter presets in bundle.json, in the place of earlier ones of the same names.

    Raises:
        OutputError: the file cannot be written; it is as it was then.
    """
    file = bundle.root / "bundle.json"
    manifest: dict[str, Any] = json.loads(file.read_bytes())
    entries = {name: preset.model_dump(mode="json") for name, preset in presets.items()}
    manifest["presets"] = manifest.get("presets", {}) | entries
    write_text(file, json.dumps(manifest, indent=1, allow_nan=False) + "\n")
