"""How long a clip will take, from what is known before it runs, the best source first.

1. Clips that this runtime has made: with the same settings, else of the same shape at their pace. A network call of one
   shape takes as long whatever the schedule, and so does its decoding.
2. The profile of this machine, where `sora-bench calibrate` was run (`sora_runtime.cost`).
3. What presets of the bundle took on a machine like this one, scaled by their evaluations; an upper bound, since part
   of their time was no evaluation.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .bundle import Bundle
from .cost.profile_path import default_path
from .engines.registry import DEFAULT_ENGINE
from .forecast import Band
from .machine import available_cores, this_machine
from .manifest import TransformerBucket
from .request import ResolvedRequest
from .sampling import SamplerProgram

if TYPE_CHECKING:
    from .cost.predict import Prediction

_Z90 = 1.2815515655446004  # the 90% point of a standard normal
# Relative spread of a time that was measured in this process: repeated medians of one graph on a quiet machine lay
# within 12% of each other.
_OWN_SPREAD = 0.1
OWN_MARGIN = math.exp(_Z90 * _OWN_SPREAD)  # the 90th percentile of such a time over its median
# Of one measured on such a machine some other day: the spread of single rows about a profile (`cost.profile`).
_RECORDED_SPREAD = 0.18
# The same of another bundle of the model: an evaluation in int8 takes half the time of one in float32 on a processor.
_RELATED_SPREAD = math.log(2.0) / _Z90
_KEPT = 64  # clips remembered of each shape


@dataclass(frozen=True)
class PastClip:
    """What a clip of this runtime took; seconds of wall time."""

    program: str  # sha256 of its sampler program
    evaluations: int
    denoise: float
    decode: float
    total: float  # without loading, waiting and what was given up on the way


@dataclass(frozen=True)
class Expected:
    """What a clip will take; seconds.

    Attributes:
        seconds: the whole clip, as a receipt's total.
        evaluations: network calls; where the run decides, as many as on record or else the most.
        denoise: of `seconds` at the median; None where the source does not tell.
        decode: the same of the decoder.
        origin: where it is from.
    """

    seconds: Band
    evaluations: float
    denoise: float | None
    decode: float | None
    origin: str

    @property
    def margin(self) -> float:
        """The 90th percentile over the median."""
        return self.seconds.p90 / self.seconds.p50

    @property
    def after_text(self) -> float | None:
        """Seconds at the median once the prompts are encoded; None where the source does not tell."""
        return None if self.denoise is None or self.decode is None else self.denoise + self.decode


class Foresight:
    """Predicts the clips of one runtime and learns from those it made. Threads may share one.

    Args:
        bundle: the runtime's.
        num_threads: the runtime's.
        engine: what runs its networks. Profiles and presets tell of the default engine alone.
    """

    def __init__(self, bundle: Bundle, num_threads: int, engine: str = DEFAULT_ENGINE) -> None:
        self._bundle = bundle
        self._engine = engine
        self._num_threads = num_threads
        self._past: dict[TransformerBucket, tuple[PastClip, ...]] = {}

    def learn(self, bucket: TransformerBucket, clip: PastClip) -> None:
        """Remember a clip that was made."""
        self._past[bucket] = (*self._past.get(bucket, ())[1 - _KEPT :], clip)

    def expect(self, request: ResolvedRequest, program: SamplerProgram, *, related: bool = False) -> Expected | None:
        """What is known of a clip; None where nothing is.

        Args:
            request: of the clip.
            program: that serves it.
            related: take the records of presets for other bundles too, where there is nothing better.
        """
        past = self._past.get(request.bucket, ())
        same = [clip for clip in past if clip.program == program.sha256]
        if same:
            return _as_before(same)
        calls = self._evaluations(request, program)
        if past:
            return _at_their_pace(past, calls)
        if self._engine != DEFAULT_ENGINE:
            return None
        return self._by_profile(request, program, calls) or self._by_record(request, calls, related)

    def _evaluations(self, request: ResolvedRequest, program: SamplerProgram) -> float:
        """Network calls of a clip."""
        used = request.preset
        if program.reuse.criterion != "none" and used is not None and not used.changed:
            return min(used.preset.cost.evaluations, program.evaluations)
        return program.evaluations

    def _by_profile(self, request: ResolvedRequest, program: SamplerProgram, calls: float) -> Expected | None:
        if not default_path().is_file():  # the estimator is imported only where there is a profile
            return None
        from .cost.clips import Shape
        from .cost.on_machine import RunsAs, predicted_here

        geometry, rows = request.geometry, len(program.rows)
        guided = bool(np.any(program.rows["guidance_scale"] != 1.0))
        shape = Shape(
            width=geometry.width,
            height=geometry.height,
            frames=geometry.num_frames,
            steps=rows,
            guided=guided,
            image=request.image is not None,
        )
        reused = 1.0 - calls / (rows * (2 if guided else 1))
        how = RunsAs(self._bundle.manifest.precision, self._num_threads, reused)
        found = predicted_here(self._bundle.root, shape, how)
        return None if found is None else _by_stages(found[0], calls, found[1])

    def _by_record(self, request: ResolvedRequest, calls: float, related: bool) -> Expected | None:
        found: list[tuple[bool, float, str]] = []
        for name, preset in self._bundle.manifest.presets.items():
            bucket, elsewhere = request.bucket, preset.bundle is not None
            of = (preset.task, preset.height, preset.width, preset.num_frames, preset.cost.machine)
            here = (bucket.task, bucket.height, bucket.width, bucket.num_frames, self._machine)
            if of == here and (related or not elsewhere):
                more = max(calls / max(preset.cost.evaluations, 1.0), 1.0)
                found.append((elsewhere, preset.cost.seconds_per_clip * more, name))
        if not found:
            return None
        elsewhere, seconds, name = min(found)
        spread = _RELATED_SPREAD if elsewhere else _RECORDED_SPREAD
        return Expected(_band(seconds, spread), calls, None, None, f"the record of preset '{name}'")

    @cached_property
    def _machine(self) -> str | None:
        """What a preset's cost must have been measured on to hold here; None: no record does."""
        return this_machine().name if self._num_threads == available_cores() else None


def _as_before(clips: Sequence[PastClip]) -> Expected:
    totals = [clip.total for clip in clips]
    spread = statistics.stdev([math.log(total) for total in totals]) if len(totals) > 2 else 0.0
    return Expected(
        _band(statistics.median(totals), max(spread, _OWN_SPREAD)),
        statistics.fmean(clip.evaluations for clip in clips),
        statistics.median(clip.denoise for clip in clips),
        statistics.median(clip.decode for clip in clips),
        f"{_clips(clips)} with these settings",
    )


def _at_their_pace(clips: Sequence[PastClip], calls: float) -> Expected:
    denoise = calls * statistics.median(clip.denoise / max(clip.evaluations, 1) for clip in clips)
    decode = statistics.median(clip.decode for clip in clips)
    rest = statistics.median(clip.total - clip.denoise - clip.decode for clip in clips)
    origin = f"the pace of {_clips(clips)} of this size"
    return Expected(_band(denoise + decode + rest, _OWN_SPREAD), calls, denoise, decode, origin)


def _clips(clips: Sequence[PastClip]) -> str:
    return f"{len(clips)} clips" if len(clips) > 1 else "one clip"


def _by_stages(prediction: "Prediction", calls: float, origin: str) -> Expected:
    stages = {name: sum(parts.values()) for name, parts in prediction.stages.items()}
    band = Band(p10=prediction.p10, p50=prediction.p50, p90=prediction.p90)
    return Expected(band, calls, stages["denoise"], stages["vae_decode"], origin)


def _band(median: float, spread: float) -> Band:
    factor = math.exp(_Z90 * spread)
    return Band(p10=median / factor, p50=median, p90=median * factor)
