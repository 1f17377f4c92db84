"""Makes a setting's clips and compares them with the reference's: quality from the same noise, time side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sora_runtime.bench.frontier_record import IDENTICAL_PSNR, Outcome, Setting
from sora_runtime.clip import Clip
from sora_runtime.errors import InvalidRequest
from sora_runtime.request import resolve
from sora_runtime.reuse_calibration import ClipAsk, psnr, ssim
from sora_runtime.runtime import Runtime

Frames = NDArray[np.uint8]
Judge = Callable[[int, Frames], bool]
"""Whether a clip shows all that the prompt of this number asks for."""


class Contest(Protocol):
    """What a search needs of whoever measures."""

    def identity(self, setting: Setting) -> str | None:
        """A name that settings of the same clips share; None for one that is not to be measured."""
        ...

    def measure(self, setting: Setting) -> Outcome:
        """What is found of a setting."""
        ...


@dataclass
class ClipContest:
    """Clips of prompts, made with settings and with the reference's.

    Attributes:
        runtimes: of the bundle that is searched, under None, and of others by their names in a preset.
        clips: what to make; the seed is the place in the list.
        reference: what everything is compared with; of the bundle that is searched.
        size: height, width and num_frames of the clips; what is absent is the bundle's default.
        usd_per_hour: of the machine.
        judge: None where no detector knows the model.
        pairs: how many clips of a setting are timed, each beside the reference's.
        reference_seconds: of a clip of the reference, known from an earlier session; None: to be measured.
        progress: called with a sentence now and then.
    """

    runtimes: Mapping[str | None, Runtime]
    clips: Sequence[ClipAsk]
    reference: Setting
    usd_per_hour: float
    size: Mapping[str, int | None] = field(default_factory=dict)
    judge: Judge | None = None
    pairs: int = 3
    reference_seconds: float | None = None
    progress: Callable[[str], None] = lambda _: None
    _made: list[Clip] = field(init=False, default_factory=list)
    _warm: set[str | None] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        if not self.clips:
            raise InvalidRequest("there is no prompt to search with; give one a line")
        if self.pairs < 1:
            raise InvalidRequest(f"pairs = {self.pairs} times nothing; use 1 or more")
        self._identity, self._most_evaluations = self._program(self.reference)

    @property
    def video_seconds(self) -> float:
        """Of a clip."""
        return self._reference()[0].receipt.video_seconds

    def identity(self, setting: Setting) -> str | None:
        """The hash of the sampler program and the bundle; None for what cannot be served or outdoes the reference."""
        try:
            name, evaluations = self._program(setting)
        except InvalidRequest:
            return None
        return name if evaluations <= self._most_evaluations else None

    def measure(self, setting: Setting) -> Outcome:
        """Make every clip, some of them beside the reference's, and compare."""
        reference = self._reference()
        same = self._program(setting)[0] == self._identity
        made, ratios = (list(reference), [1.0]) if same else self._make(setting)
        frames = [(a.frames, b.frames) for a, b in zip(reference, made, strict=True)]
        decibels = [psnr(a, b) for a, b in frames]
        finite = [value for value in decibels if math.isfinite(value)]
        flickers = [flicker(b) for _, b in frames], [flicker(a) for a, _ in frames]
        ratio = statistics.median(ratios)
        seconds = ratio * self._seconds()
        right = None if self.judge is None else [self.judge(number, b) for number, (_, b) in enumerate(frames)]
        outcome = Outcome(
            prompts=len(frames),
            adherence=None if right is None else sum(right) / len(right),
            psnr_mean=round(float(np.mean(finite)), 3) if finite else None,
            fidelity=round(float(np.mean([min(value, IDENTICAL_PSNR) for value in decibels])), 3),
            ssim_mean=round(float(np.mean([ssim(a, b) for a, b in frames])), 5),
            flicker=round(sum(flickers[0]) / sum(flickers[1]), 4) if sum(flickers[1]) > 0 else None,
            evaluations=float(np.mean([clip.receipt.evaluations.made for clip in made])),
            ratio=ratio,
            seconds_per_clip=seconds,
            usd_per_second=seconds * self.usd_per_hour / 3600 / self.video_seconds,
        )
        level = f"{outcome.fidelity:.1f} dB" if outcome.adherence is None else f"adherence {outcome.adherence:.3f}"
        self.progress(f"{setting}: {outcome.evaluations:.1f} evaluations, {ratio:.2f} of the time, {level}")
        return outcome

    def _make(self, setting: Setting) -> tuple[list[Clip], list[float]]:
        """The clips of a setting, and of some of them the seconds over those of the reference's beside them."""
        made, ratios = [], []
        for number in range(len(self.clips)):
            if number >= self.pairs:
                made.append(self._clip(number, setting))
                continue
            if number % 2:  # now the one, now the other comes first: neither gains by its place
                first = self._clip(number, self.reference)
                made.append(self._clip(number, setting))
            else:
                made.append(self._clip(number, setting))
                first = self._clip(number, self.reference)
            ratios.append(made[-1].receipt.seconds.total / first.receipt.seconds.total)
        return made, ratios

    def _clip(self, number: int, setting: Setting) -> Clip:
        """One clip whose prompts were encoded before: what is timed is the same for every setting."""
        ask, runtime = self.clips[number], self.runtimes[setting.bundle]
        fields: dict[str, Any] = {**self.size, **setting.request(), "seed": number, "image": ask.image}
        if setting.bundle not in self._warm:
            runtime.generate(ask.prompt, **fields)  # the first clip pays for memory that later ones find
            self._warm.add(setting.bundle)
        clip = runtime.generate(ask.prompt, **fields)
        cache = clip.receipt.embedding_cache
        return runtime.generate(ask.prompt, **fields) if cache is not None and cache.misses else clip

    def _reference(self) -> list[Clip]:
        if not self._made:
            self.progress(f"the reference: {self.reference}, {len(self.clips)} clips")
            self._made = [self._clip(number, self.reference) for number in range(len(self.clips))]
        return self._made

    def _seconds(self) -> float:
        """Of a clip of the reference: the median of the first session's, so that points of all sessions compare."""
        if self.reference_seconds is None:
            self.reference_seconds = statistics.median(clip.receipt.seconds.total for clip in self._reference())
        return self.reference_seconds

    def _program(self, setting: Setting) -> tuple[str, int]:
        """The name of a setting's sampler program and bundle, and the network calls that it makes at most."""
        runtime = self.runtimes[setting.bundle]
        fields = {**self.size, **setting.request(), "image": self.clips[0].image}
        program = runtime.program(resolve(self.clips[0].prompt, fields, runtime.bundle.manifest))
        return f"{setting.bundle or ''}:{program.sha256}", program.evaluations


def flicker(frames: Frames) -> float:
    """Mean size of the luma's second difference in time, in grey levels: what comes and goes from frame to frame.

    Steady motion changes the first difference and leaves the second small.
    """
    luma = frames @ np.array([0.299, 0.587, 0.114])
    return float(np.mean(np.abs(np.diff(luma, n=2, axis=0)))) if len(luma) > 2 else 0.0
