"""What a search of settings compares: a setting, how good and how dear it was found, and what is asked of both."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from sora_runtime.errors import InvalidRequest
from sora_runtime.sampling import StepReuse

IDENTICAL_PSNR = 60.0  # dB that a clip of no difference counts as where levels are compared: no eye sees less


@dataclass(frozen=True)
class Setting:
    """How clips are made.

    Attributes:
        fields: of a request, as JSON has them; see `sora_runtime.presets.PRESET_SETTINGS`.
        bundle: another one that they are for, by its name; None: the one that is searched.
    """

    fields: Mapping[str, Any]
    bundle: str | None = None

    def request(self) -> dict[str, Any]:
        """The fields as `Runtime.generate` takes them."""
        given = dict(self.fields)
        reuse = given.get("step_reuse")
        if isinstance(reuse, Mapping):
            tuples = {name: tuple(value) for name, value in reuse.items() if isinstance(value, list)}
            given["step_reuse"] = StepReuse(**{**reuse, **tuples})
        if given.get("guidance_interval") is not None:
            given["guidance_interval"] = tuple(given["guidance_interval"])
        return given

    def __str__(self) -> str:
        given = self.fields
        steps = given.get("num_inference_steps")
        words = [self.bundle or "", f"{steps} {'step' if steps == 1 else 'steps'}", given.get("solver") or ""]
        scale, interval = given.get("guidance_scale"), given.get("guidance_interval")
        if scale is not None:
            within = f" in {interval[0]:.2g}-{interval[1]:.2g}" if interval else ""
            words.append("no guidance" if scale == 1.0 else f"guidance {scale:.3g}{within}")
        return ", ".join([word for word in words if word] + _reuse_words(given.get("step_reuse")))


def _reuse_words(reuse: Any) -> list[str]:
    if not isinstance(reuse, Mapping):
        return [str(reuse)] if reuse else []
    told = {
        "easycache": lambda: f"under {reuse['threshold']:.2g}, order {reuse['order']}",
        "taylorseer": lambda: f"1 in {reuse['interval']}, order {reuse['order']}",
        "unconditional": lambda: f"1 in {reuse['unconditional_every']}",
    }.get(reuse["policy"])
    return [f"{reuse['policy']} {told() if told else ''}".strip()]


@dataclass(frozen=True)
class Outcome:
    """What was found of a setting over all prompts, each clip against the reference's from the same noise.

    Attributes:
        prompts: clips that were compared.
        adherence: share of the prompts that were wholly right; None where no detector knows the model.
        psnr_mean: dB over the clips that differ; None where none does.
        fidelity: the same with identical clips as `IDENTICAL_PSNR`, to compare settings by.
        ssim_mean: of all clips.
        flicker: of all clips over the reference's, as `flicker` has it; None where the reference's stand still.
        evaluations: network calls of a clip, the mean.
        ratio: seconds of a clip over those of the reference's beside it, the median of pairs.
        seconds_per_clip: that ratio times the reference's median.
        usd_per_second: of generated video, at the hourly price of the machine.
    """

    prompts: int
    adherence: float | None
    psnr_mean: float | None
    fidelity: float
    ssim_mean: float
    flicker: float | None
    evaluations: float
    ratio: float
    seconds_per_clip: float
    usd_per_second: float

    @property
    def quality(self) -> float:
        """What settings are ranked by: adherence, or fidelity where there is none."""
        return self.fidelity if self.adherence is None else self.adherence


@dataclass(frozen=True)
class Point:
    """A setting that was measured."""

    setting: Setting
    outcome: Outcome

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"bundle": self.setting.bundle, "settings": dict(self.setting.fields), **asdict(self.outcome)}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Self:
        """What `record` wrote."""
        told = {name: record[name] for name in Outcome.__dataclass_fields__}
        return cls(Setting(record["settings"], record["bundle"]), Outcome(**told))


CostAxis = Callable[[Outcome], float]
COSTS: dict[str, CostAxis] = {
    "usd": lambda outcome: outcome.usd_per_second,
    "evaluations": lambda outcome: outcome.evaluations,
}


@dataclass(frozen=True)
class Constraints:
    """What a chosen setting must keep; None: nothing.

    Raises:
        InvalidRequest: a bound that no setting can keep, or that none can break.
    """

    min_adherence: float | None = None
    min_psnr: float | None = None
    max_usd_per_second: float | None = None

    def __post_init__(self) -> None:
        if self.min_adherence is not None and not 0.0 < self.min_adherence <= 1.0:
            raise InvalidRequest(
                f"min_adherence = {self.min_adherence:g} is no share of the prompts; use one above 0 and at most 1"
            )
        for name in ("min_psnr", "max_usd_per_second"):
            bound = getattr(self, name)
            if bound is not None and not (math.isfinite(bound) and bound > 0.0):
                raise InvalidRequest(f"{name} = {bound:g} is no bound; use a number above 0")

    def excesses(self, outcome: Outcome) -> dict[str, float]:
        """By how much each bound is broken; 0 or less: it is kept."""
        found = {}
        if self.min_adherence is not None and outcome.adherence is not None:
            found["adherence"] = self.min_adherence - outcome.adherence
        if self.min_psnr is not None:
            found["psnr"] = self.min_psnr - outcome.fidelity
        if self.max_usd_per_second is not None:
            found["usd"] = outcome.usd_per_second / self.max_usd_per_second - 1.0
        return found

    def kept(self, outcome: Outcome) -> bool:
        """Whether all of them are kept."""
        return all(excess <= 0.0 for excess in self.excesses(outcome).values())

    def __str__(self) -> str:
        words = {
            "adherence {:g} or more": self.min_adherence,
            "{:g} dB or more": self.min_psnr,
            "{:.3g} USD a second or less": self.max_usd_per_second,
        }
        return " and ".join(text.format(bound) for text, bound in words.items() if bound is not None)


def pareto(points: Iterable[Point], cost: CostAxis) -> list[Point]:
    """The points that no other one beats in both: the cheapest first, each better than the one before."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (cost(each.outcome), -each.outcome.quality)):
        if not front or point.outcome.quality > front[-1].outcome.quality:
            front.append(point)
    return front


def hypervolume(front: Sequence[Point], cost: CostAxis, corner: tuple[float, float]) -> float:
    """The area between a frontier and a corner (cost, quality), in units of quality at no cost at all.

    Zitzler and Thiele's S metric (1998) in two dimensions, over the corner's cost: with the corner at (the reference's
    cost, 0) and adherence as quality, 1 is every prompt right for nothing. Points beyond the corner count nothing.
    """
    dearest, worst = corner
    inside = [p for p in front if cost(p.outcome) < dearest and p.outcome.quality > worst]
    area, ceiling = 0.0, worst
    for point in sorted(inside, key=lambda each: cost(each.outcome)):
        gained = max(0.0, point.outcome.quality - ceiling)
        area += gained * (dearest - cost(point.outcome))
        ceiling = max(ceiling, point.outcome.quality)
    return area / dearest


def setting_key(setting: Setting) -> str:
    """Names a setting by what it says."""
    return json.dumps([setting.bundle, dict(setting.fields)], sort_keys=True)
