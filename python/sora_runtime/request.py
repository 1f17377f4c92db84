"""A request for a clip: the caller's words, checked once, completed with the bundle's defaults."""

import html
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidRequest
from .geometry import Geometry, Strides
from .manifest import Manifest, TransformerBucket
from .pixels import Picture, read_picture
from .preset_use import UsedPreset, damaged, find_preset, settings_of, sized, under
from .presets import Preset
from .request_settings import checked_integer, checked_number, checked_settings, checked_text
from .sampling import GuidanceRule, StepReuse

if TYPE_CHECKING:
    from PIL.Image import Image

RNGS = ("philox", "torch")


class RequestFields(TypedDict, total=False):
    """What a caller may ask for beside the prompt; what is absent or None takes the bundle's default."""

    negative_prompt: str | None
    seed: int  # 0 to 2^64 - 1
    rng: str  # "philox", or "torch" for the bits of torch.randn
    num_inference_steps: int | None
    sigmas: Sequence[float] | None  # of each step, from noise to data, before the model's shift; without the final 0
    timesteps: Sequence[float] | None  # in their place, what the network is told at each step
    guidance_scale: float | None  # 1 is no guidance
    guidance_scale_2: float | None  # of the second transformer; None: guidance_scale
    guidance_rescale: float  # 0 is off, at most 1
    guidance_method: "str | GuidanceRule"  # "cfg", "cfg_zero_star", "apg" with its paper's numbers, or all of them
    guidance_interval: tuple[float, float] | None  # the two sigmas between which there is guidance, the lower first
    guidance_decay: float  # how much of guidance_scale - 1 is gone at the last step, 0 to 1
    zero_init_steps: int | None  # steps at the beginning whose output is 0; None: 1 for cfg_zero_star, else 0
    height: int | None  # pixels
    width: int | None
    num_frames: int | None
    fps: float | None
    solver: str | None  # "euler", "unipc", "dpm++2m", "heun", "ddim", "lcm"; None: the model's own
    latents: NDArray[np.float32] | None  # unit noise to start from, in place of the seed's
    image: "Image | str | os.PathLike[str] | NDArray[np.uint8] | None"  # what an image-to-video clip begins with
    price_per_hour: float | None  # USD for the whole machine
    # "easycache", "magcache", "taylorseer", "teacache", "plan" or "unconditional" as calibrated for the bundle, or all
    # settings; None evaluates every step.
    step_reuse: str | StepReuse | None
    reuse_threshold: float | None  # in place of the calibrated one: lower loses less, a higher one must be forced
    force_step_reuse: bool  # also where nothing says what it costs in quality
    preset: str | None  # of the bundle: its settings are the defaults under whatever else is said here
    max_usd: float | None  # what the clip may cost at price_per_hour; see `sora_runtime.budget`
    deadline_s: float | None  # seconds from the call to the last frame, waiting and loading included


@dataclass(frozen=True)
class Budget:
    """What a clip may cost, in USD, and how long it may take, in seconds; None: no limit."""

    max_usd: float | None = None
    deadline_s: float | None = None

    def seconds(self, price_per_hour: float | None) -> float:
        """How long a clip may take at this price, in USD; infinity where nothing bounds it."""
        most = math.inf if self.deadline_s is None else self.deadline_s
        return min(most, self.max_usd * 3600 / price_per_hour) if self.max_usd is not None and price_per_hour else most


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest:
    """A request that can be served: every value stated, the shape bucket chosen."""

    prompt: str
    negative_prompt: str
    seed: int
    rng: str
    num_inference_steps: int
    sigmas: tuple[float, ...] | None
    timesteps: tuple[float, ...] | None
    guidance_scale: float
    guidance_scale_2: float | None
    guidance_rescale: float
    fps: float
    solver: str | None
    latents: NDArray[np.float32] | None
    image: Picture | None
    price_per_hour: float | None
    geometry: Geometry
    bucket: TransformerBucket
    guidance_rule: GuidanceRule = field(default_factory=GuidanceRule)
    guidance_interval: tuple[float, float] | None = None
    guidance_decay: float = 0.0
    zero_init_steps: int = 0
    step_reuse: str | StepReuse | None = None
    reuse_threshold: float | None = None
    force_step_reuse: bool = False
    preset: UsedPreset | None = None
    budget: Budget | None = None


def resolve(prompt: str, fields: Mapping[str, Any], manifest: Manifest) -> ResolvedRequest:
    """Check a request against a bundle and complete it.

    Args:
        prompt: what the clip should show.
        fields: `RequestFields`.
        manifest: the bundle's.

    Raises:
        InvalidRequest: the first thing that is wrong: what, the value, the remedy.
        BundleError: the preset that the request names holds what no request may.
    """
    for name in fields:
        if name not in RequestFields.__annotations__:
            known = ", ".join(RequestFields.__annotations__)
            raise InvalidRequest(f"'{name}' is no field of a request; use {known}")
    given = {name: value for name, value in fields.items() if value is not None}
    given, preset = _under_preset(given, manifest)
    facts, defaults = manifest.facts, manifest.facts.defaults
    words = checked_text("prompt", prompt)
    if not html.unescape(words).strip():
        raise InvalidRequest("the prompt is empty; say what the clip should show")
    rng = given.get("rng", RNGS[0])
    if rng not in RNGS:
        raise InvalidRequest(f"rng = {rng!r} is unknown; use {' or '.join(RNGS)}")
    size = [
        checked_integer(name, given.get(name, getattr(defaults, name)), 1, 1 << 20)
        for name in ("height", "width", "num_frames")
    ]
    image = _image(given.get("image"), manifest)
    bucket = _bucket(manifest, "t2v" if image is None else "i2v", *size)
    strides = Strides(
        facts.latent_channels, facts.spatial_stride, facts.temporal_stride, facts.patch_size, facts.pad_latent_frames
    )
    geometry = Geometry.of(strides, height=size[0], width=size[1], num_frames=size[2])
    if image is not None and facts.image is not None:
        geometry = replace(geometry, dropped_frames=facts.image.dropped_frames)
    settings = checked_settings(given, manifest)
    if preset is not None:
        _, own = _settings_of(preset.name, preset.preset, manifest)
        preset = replace(preset, changed=_changed(settings, own))
    price = given.get("price_per_hour")
    return ResolvedRequest(
        prompt=words,
        seed=checked_integer("seed", given.get("seed", 0), 0, 2**64 - 1),
        rng=rng,
        fps=checked_number("fps", given.get("fps", facts.fps), 1, 240),
        latents=_latents(given.get("latents"), geometry),
        image=image,
        price_per_hour=None if price is None else checked_number("price_per_hour", price, 0, 1e6),
        geometry=geometry,
        bucket=bucket,
        preset=preset,
        budget=_budget(given),
        **settings,
    )


def _under_preset(given: dict[str, Any], manifest: Manifest) -> tuple[dict[str, Any], UsedPreset | None]:
    """A request's fields with those of the preset that it names, which is checked by itself first."""
    if "preset" not in given:
        return given, None
    name = given["preset"]
    preset = find_preset(manifest, name)
    given = sized(given, name, preset)
    return under(given, _settings_of(name, preset, manifest)[0]), UsedPreset(name, preset)


def _settings_of(name: str, preset: Preset, manifest: Manifest) -> tuple[dict[str, Any], dict[str, Any]]:
    """A preset's settings as fields of a request, and as they are resolved where a request says no more."""
    settings = settings_of(name, preset, manifest)
    try:
        return settings, checked_settings(settings, manifest)
    except InvalidRequest as error:
        raise damaged(name, manifest, error) from error


def _changed(settings: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name for name, value in settings.items() if value != own[name])


def with_preset(
    request: ResolvedRequest, name: str, manifest: Manifest, kept: Mapping[str, Any] | None = None
) -> ResolvedRequest:
    """A request with the settings of a preset, which was measured at its size, in the place of its own but `kept`.

    Raises:
        BundleError: the preset holds what no request may.
    """
    preset = find_preset(manifest, name)
    _, own = _settings_of(name, preset, manifest)
    settings = {**own, **(kept or {})}
    return replace(request, **settings, preset=UsedPreset(name, preset, _changed(settings, own)))


def _budget(given: Mapping[str, Any]) -> Budget | None:
    """The limits of a clip, None without any."""
    usd, seconds = given.get("max_usd"), given.get("deadline_s")
    if usd is None and seconds is None:
        return None
    if usd is not None and given.get("price_per_hour") is None:
        raise InvalidRequest(f"max_usd = {usd!r} says nothing without a price; give price_per_hour in USD too")
    return Budget(
        max_usd=None if usd is None else checked_number("max_usd", usd, 0, 1e9),
        deadline_s=None if seconds is None else checked_number("deadline_s", seconds, 0, 1e9),
    )


def _image(given: Any, manifest: Manifest) -> Picture | None:
    if given is None:
        if "t2v" not in manifest.tasks:
            raise InvalidRequest(f"'{manifest.name}' makes clips from a picture; pass image")
        return None
    if "i2v" not in manifest.tasks:
        raise InvalidRequest(f"'{manifest.name}' makes clips from a prompt alone; leave image out")
    return read_picture(given)


def _bucket(manifest: Manifest, task: str, height: int, width: int, num_frames: int) -> TransformerBucket:
    buckets = [bucket for bucket in manifest.components.transformer.buckets if bucket.task == task]
    for bucket in buckets:
        if (bucket.height, bucket.width, bucket.num_frames) == (height, width, num_frames):
            return bucket
    there = ", ".join(f"{b.width}x{b.height} with {b.num_frames} frames" for b in buckets)
    raise InvalidRequest(
        f"size {width}x{height} with {num_frames} frames has no graph in '{manifest.name}'; use one of: {there}"
    )


def _latents(latents: Any, geometry: Geometry) -> NDArray[np.float32] | None:
    if latents is None:
        return None
    try:
        array = np.asarray(latents, np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"latents are no array of numbers ({error}); pass float32 noise") from error
    if array.shape not in (geometry.latent_shape, geometry.latent_shape[1:]):
        raise InvalidRequest(f"latents have the shape {list(array.shape)}; use {list(geometry.latent_shape)}")
    if not np.isfinite(array).all():
        raise InvalidRequest("latents hold NaN or infinity; pass standard normal noise")
    return array.reshape(geometry.latent_shape)
