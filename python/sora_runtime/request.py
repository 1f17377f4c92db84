"""A request for a clip: the caller's words, checked once, completed with the bundle's defaults."""

import html
import math
import operator
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
from .sampling import REUSE_POLICIES, GuidanceRule, StepReuse, guidance_rule

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


def resolve(prompt: str, fields: Mapping[str, Any], manifest: Manifest) -> ResolvedRequest:
    """Check a request against a bundle and complete it.

    Args:
        prompt: what the clip should show.
        fields: `RequestFields`.
        manifest: the bundle's.

    Raises:
        InvalidRequest: the first thing that is wrong: what, the value, the remedy.
    """
    for name in fields:
        if name not in RequestFields.__annotations__:
            known = ", ".join(RequestFields.__annotations__)
            raise InvalidRequest(f"'{name}' is no field of a request; use {known}")
    given = {name: value for name, value in fields.items() if value is not None}
    facts, defaults = manifest.facts, manifest.facts.defaults
    words = _text("prompt", prompt)
    if not html.unescape(words).strip():
        raise InvalidRequest("the prompt is empty; say what the clip should show")
    rng = given.get("rng", RNGS[0])
    if rng not in RNGS:
        raise InvalidRequest(f"rng = {rng!r} is unknown; use {' or '.join(RNGS)}")
    size = [
        _integer(name, given.get(name, getattr(defaults, name)), 1, 1 << 20)
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
    sigmas, timesteps = _levels("sigmas", given, 1), _levels("timesteps", given, facts.num_train_timesteps)
    second, price, solver = given.get("guidance_scale_2"), given.get("price_per_hour"), given.get("solver")
    return ResolvedRequest(
        prompt=words,
        negative_prompt=_text("negative_prompt", given.get("negative_prompt", defaults.negative_prompt)),
        seed=_integer("seed", given.get("seed", 0), 0, 2**64 - 1),
        rng=rng,
        num_inference_steps=_steps(given, sigmas or timesteps, defaults.num_inference_steps),
        sigmas=sigmas,
        timesteps=timesteps,
        guidance_scale=_number("guidance_scale", given.get("guidance_scale", defaults.guidance_scale), -1000, 1000),
        guidance_scale_2=None if second is None else _number("guidance_scale_2", second, -1000, 1000),
        guidance_rescale=_number("guidance_rescale", given.get("guidance_rescale", 0.0), 0, 1),
        fps=_number("fps", given.get("fps", facts.fps), 1, 240),
        solver=None if solver is None else _text("solver", solver),
        latents=_latents(given.get("latents"), geometry),
        image=image,
        price_per_hour=None if price is None else _number("price_per_hour", price, 0, 1e6),
        geometry=geometry,
        bucket=bucket,
        **_guidance(given),
        **_step_reuse(given),
    )


def _guidance(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of guidance beyond its scale."""
    method, interval = given.get("guidance_method", "cfg"), given.get("guidance_interval")
    if not isinstance(method, str | GuidanceRule):
        raise InvalidRequest(f"guidance_method is a {type(method).__name__}; pass a name or a GuidanceRule")
    rule = guidance_rule(method) if isinstance(method, str) else method
    if interval is not None:
        if not isinstance(interval, list | tuple) or len(interval) != 2:
            raise InvalidRequest(f"guidance_interval = {interval!r} is no pair of sigmas; use one such as (0.2, 0.8)")
        interval = tuple(_number("guidance_interval", value, 0, 1e6) for value in interval)
    first = 1 if rule.method == "cfg_zero_star" else 0
    return {
        "guidance_rule": rule,
        "guidance_interval": interval,
        "guidance_decay": _number("guidance_decay", given.get("guidance_decay", 0.0), 0, 1),
        "zero_init_steps": _integer("zero_init_steps", given.get("zero_init_steps", first), 0, 1000),
    }


def _step_reuse(given: Mapping[str, Any]) -> dict[str, Any]:
    """The three fields of step reuse, each checked alone; whether they fit the program is seen when there is one."""
    reuse, threshold = given.get("step_reuse"), given.get("reuse_threshold")
    if isinstance(reuse, str) and reuse not in REUSE_POLICIES:
        raise InvalidRequest(f"step_reuse = '{reuse}' is unknown; use {', '.join(REUSE_POLICIES)}")
    if reuse is not None and not isinstance(reuse, str | StepReuse):
        raise InvalidRequest(f"step_reuse is a {type(reuse).__name__}; pass the name of a policy or a StepReuse")
    if reuse is None and (threshold is not None or given.get("force_step_reuse")):
        raise InvalidRequest("reuse_threshold and force_step_reuse say nothing without step_reuse; name a policy")
    return {
        "step_reuse": reuse,
        "reuse_threshold": None if threshold is None else _number("reuse_threshold", threshold, 0, 1e6),
        "force_step_reuse": bool(given.get("force_step_reuse", False)),
    }


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is a {type(value).__name__}; pass a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{name} holds a character that is no Unicode text ({error.reason}); leave it out"
        ) from error
    return value


def _integer(name: str, value: Any, least: int, most: int) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise InvalidRequest(f"{name} = {value!r} is no whole number; use {least} to {most}") from error
    if not least <= number <= most:
        raise InvalidRequest(f"{name} = {number} is out of range; use {least} to {most}")
    return number


def _number(name: str, value: Any, least: float, most: float) -> float:
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise InvalidRequest(f"{name} = {value!r} is no number; use {least:g} to {most:g}")
    number = float(value)
    if not (math.isfinite(number) and least <= number <= most):
        raise InvalidRequest(f"{name} = {number:g} is out of range; use {least:g} to {most:g}")
    return number


def _levels(name: str, given: Mapping[str, Any], most: float) -> tuple[float, ...] | None:
    """The levels of the steps, as many as there are; how they must descend is the schedule's to say."""
    values = given.get(name)
    if values is None:
        return None
    if isinstance(values, str | bytes | Mapping) or not (hasattr(values, "__len__") and hasattr(values, "__getitem__")):
        raise InvalidRequest(f"{name} = {values!r} is no list; give a number for each step")
    levels = tuple(_number(f"{name}[{index}]", value, 0, most) for index, value in enumerate(values))
    if not 1 <= len(levels) <= 1000:
        raise InvalidRequest(f"{name} has {len(levels)} levels; give one for each of 1 to 1000 steps")
    return levels


def _steps(given: Mapping[str, Any], levels: tuple[float, ...] | None, default: int) -> int:
    if "sigmas" in given and "timesteps" in given:
        raise InvalidRequest("sigmas and timesteps are both given; give one of them")
    steps = given.get("num_inference_steps", default if levels is None else len(levels))
    number = _integer("num_inference_steps", steps, 1, 1000)
    if levels is not None and number != len(levels):
        what = "sigmas" if "sigmas" in given else "timesteps"
        raise InvalidRequest(f"num_inference_steps = {number} and {len(levels)} {what} do not agree; leave it out")
    return number


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
