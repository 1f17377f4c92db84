"""The ways to serve a request within its budget; `sora_runtime.spending` picks one and watches it run.

A request with `max_usd` or `deadline_s` is served as it stands where that fits, else with the best preset of the bundle
that does: by the adherence on record, then PSNR, then SSIM. What the preset says then stands in the place of the
request's own settings; a negative prompt that was given stays. "Fits" means the 90th percentile of the prediction.

- `max_usd` bounds what the receipt bills at `price_per_hour` when `generate` returns. Loading, waiting for other clips
  and finishing a file are not in it.
- `deadline_s` counts from the call of `generate` to the last frame, with both.

Once the engines are there, after each row of the sampler program and after each decoded chunk, what is left is held
against what the rest will take at the pace that is measured. Where it does not suffice and the decoder has not begun,
the clip begins anew with the best preset whose whole denoising still fits; nothing is changed inside a trajectory, for
no quality is on record for that. What cannot be saved so is stopped with `BudgetExceeded`. A clip of which nothing is
known beforehand runs under the same watch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .bundle import Bundle, Verify
from .engines.registry import DEFAULT_ENGINE
from .foresight import Expected, Foresight
from .manifest import Manifest
from .preset_use import open_preset
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

    def fits(self, seconds: float) -> bool:
        """Whether it takes no longer, with 90% probability; also where nothing is known of it."""
        return self.expected is None or self.expected.seconds.p90 <= seconds

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
    for name in _by_quality(manifest, asked):
        itself = asked.preset is not None and asked.preset.name == name and not asked.preset.changed
        if manifest.presets[name].bundle is not None or itself:
            continue
        request = with_preset(asked, name, manifest, kept)
        program, reuse = programs(request)
        options.append(Option(request, program, reuse, foresight.expect(request, program), False, tuple(said)))
    return options


def bundle_within(
    bundle: Bundle,
    prompt: str,
    fields: Mapping[str, Any],
    *,
    num_threads: int,
    engine: str = DEFAULT_ENGINE,
    verify: Verify = "once",
) -> str | None:
    """The preset to load a bundle with, so that a request's budget is kept: one whose settings are for another bundle.

    Args:
        bundle: that was asked for.
        prompt: the request's.
        fields: the request's; without a preset.
        num_threads: that the runtime will have.
        engine: likewise.
        verify: how other bundles are verified.

    Returns:
        None where the request fits as it stands, where a better preset of the bundle itself does, or nothing is known
        to fit.

    Raises:
        InvalidRequest: the request cannot be served as it stands.
        BundleError: a preset, or the bundle that it is for, cannot be used.
    """
    foresight = Foresight(bundle, num_threads, engine)
    own = options_of(prompt, fields, bundle.manifest, Programs(bundle), foresight)
    asked = own[0].request
    most = math.inf if asked.budget is None else asked.budget.seconds(asked.price_per_hour)
    # Where nothing else is known, a clip that others' records leave room for is not exchanged for one of theirs.
    expected = own[0].expected or foresight.expect(asked, own[0].program, related=True)
    if replace(own[0], expected=expected).fits(most):
        return None
    rest = {name: value for name, value in fields.items() if name not in PRESET_SETTINGS or name == "negative_prompt"}
    for name in _by_quality(bundle.manifest, asked):
        if bundle.manifest.presets[name].bundle is None:
            if any(option.preset == name and option.fits(most) for option in own):
                return None
            continue
        other = open_preset(bundle, name, verify)
        foresight = Foresight(other, num_threads, engine)
        option = options_of(prompt, {**rest, "preset": name}, other.manifest, Programs(other), foresight)[0]
        if option.expected is not None and option.fits(most):
            return name
    return None


def _by_quality(manifest: Manifest, request: ResolvedRequest) -> list[str]:
    """The presets for clips like this one, the best first."""
    presets = [(name, preset) for name, preset in manifest.presets.items() if _serves(preset, request)]
    return [name for name, _ in sorted(presets, key=lambda item: _quality(item[1]), reverse=True)]


def _serves(preset: Preset, request: ResolvedRequest) -> bool:
    bucket = request.bucket
    size = (preset.task, preset.height, preset.width, preset.num_frames)
    return size == (bucket.task, bucket.height, bucket.width, bucket.num_frames)


def _quality(preset: Preset) -> tuple[float, float, float, float]:
    """What presets are ordered by, the cheaper of equals above."""
    found = preset.quality
    return (
        -1.0 if found.adherence is None else found.adherence,
        math.inf if found.psnr_mean is None else found.psnr_mean,
        -1.0 if found.ssim_mean is None else found.ssim_mean,
        -preset.cost.seconds_per_clip,
    )
