"""The ways to serve a request within its budget; `sora_runtime.spending` picks one and watches it run.

A request with `max_usd` or `deadline_s` is served as it stands where that fits, else with the best preset of the bundle
that does: by the adherence on record, then PSNR, then SSIM. What the preset says then stands in the place of the
request's own settings; a negative prompt that was given stays. "Fits" means the 90th percentile of the prediction.

- `max_usd` bounds the receipt's total at `price_per_hour`. Loading and waiting for other clips are not in it.
- `deadline_s` counts from the call of `generate` to the last frame, with both.

Once the engines are there, after each row of the sampler program and after each decoded chunk, what is left is held
against what the rest will take at the pace that is measured. Where it does not suffice and the decoder has not begun,
the clip begins anew with the best preset whose whole denoising still fits; nothing is changed inside a trajectory, for
no quality is on record for that. What cannot be saved so is stopped with `BudgetExceeded`. A clip of which nothing is
known beforehand runs under the same watch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .foresight import Expected, Foresight
from .manifest import Manifest
from .presets import PRESET_SETTINGS, Preset
from .programs import ChosenReuse, Programs
from .request import ResolvedRequest, resolve, with_preset
from .sampling import SamplerProgram
from .sampling.reuse import calls_of


@dataclass(frozen=True)
class Option:
    """One way to serve a request; `expected` is None where nothing is known of it, or nobody asked."""

    request: ResolvedRequest
    program: SamplerProgram
    reuse: ChosenReuse | None
    expected: Expected | None = None
    as_asked: bool = True
    replaced: tuple[str, ...] = ()  # of the request's own settings

    @property
    def preset(self) -> str | None:
        """The name of its preset."""
        return None if self.request.preset is None else self.request.preset.name

    @property
    def label(self) -> str:
        """In the words of a sentence."""
        return "the request as it stands" if self.as_asked else f"preset '{self.preset}'"

    @property
    def evaluations(self) -> float:
        """Network calls, as far as they are known."""
        return self.program.evaluations if self.expected is None else self.expected.evaluations

    def left_after(self, row: int, calls: int) -> float:
        """Network calls that are to come after so many rows and calls.

        Where the run decides about reuse, at least what is on record: too few rather than a clip stopped in vain.
        """
        if self.program.reuse.criterion == "none":
            return float(calls_of(self.program.rows)[row:].sum())
        return max(self.evaluations - calls, 0.0)


def options_of(
    prompt: str, fields: Mapping[str, Any], manifest: Manifest, programs: Programs, foresight: Foresight
) -> list[Option]:
    """The ways to serve a request, the preferred first; a single one without a budget.

    Raises:
        InvalidRequest: the request cannot be served as it stands.
        BundleError: a preset cannot be used as it lies in the bundle.
    """
    asked = resolve(prompt, fields, manifest)
    program, reuse = programs(asked)
    if asked.budget is None:
        return [Option(asked, program, reuse)]
    options = [Option(asked, program, reuse, foresight.expect(asked, program))]
    said = {name: fields[name] for name in PRESET_SETTINGS if fields.get(name) is not None}
    kept = {name: said.pop(name) for name in ("negative_prompt",) if name in said}
    presets = [(name, preset) for name, preset in manifest.presets.items() if _serves(preset, asked)]
    for name, _ in sorted(presets, key=lambda item: _quality(item[1]), reverse=True):
        if asked.preset is not None and asked.preset.name == name and not asked.preset.changed:
            continue
        request = with_preset(asked, name, manifest, kept)
        program, reuse = programs(request)
        options.append(Option(request, program, reuse, foresight.expect(request, program), False, tuple(said)))
    return options


def _serves(preset: Preset, request: ResolvedRequest) -> bool:
    bucket = request.bucket
    size = (preset.task, preset.height, preset.width, preset.num_frames)
    return preset.bundle is None and size == (bucket.task, bucket.height, bucket.width, bucket.num_frames)


def _quality(preset: Preset) -> tuple[float, float, float, float]:
    """What presets are ordered by, the cheaper of equals above."""
    found = preset.quality
    return (
        -1.0 if found.adherence is None else found.adherence,
        math.inf if found.psnr_mean is None else found.psnr_mean,
        -1.0 if found.ssim_mean is None else found.ssim_mean,
        -preset.cost.seconds_per_clip,
    )
