"""A request for a clip: the caller's words, checked once, completed with the bundle's defaults."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Manifest, TransformerBucket
from .errors import InvalidRequest
from .geometry import Geometry, Strides

RNGS = ("philox", "torch")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a caller may ask for; None takes the bundle's default."""

    prompt: str
    negative_prompt: str | None = None
    seed: int = 0
    rng: str = "philox"
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    solver: str | None = None
    latents: NDArray[np.float32] | None = None
    price_per_hour: float | None = None


def request_from(prompt: str, fields: Mapping[str, Any]) -> Request:
    """A request from keyword arguments; raises `InvalidRequest` for a field there is not."""
    known = [field.name for field in dataclasses.fields(Request) if field.name != "prompt"]
    for name in fields:
        if name not in known:
            raise InvalidRequest(f"'{name}' is no field of a request; use {', '.join(known)}")
    return Request(prompt=prompt, **fields)


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest:
    """A request that can be served: every value stated, the shape bucket chosen."""

    prompt: str
    negative_prompt: str
    seed: int
    rng: str
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    fps: float
    solver: str | None
    latents: NDArray[np.float32] | None
    price_per_hour: float | None
    geometry: Geometry
    bucket: TransformerBucket


def resolve(request: Request, manifest: Manifest) -> ResolvedRequest:
    """Check a request against a bundle and complete it.

    Raises:
        InvalidRequest: the first thing that is wrong: what, the value, the remedy.
    """
    facts = manifest.facts
    defaults = facts.defaults
    height = defaults.height if request.height is None else request.height
    width = defaults.width if request.width is None else request.width
    num_frames = defaults.num_frames if request.num_frames is None else request.num_frames
    _check_words(request)
    _check_numbers(request)
    strides = Strides(facts.latent_channels, facts.spatial_stride, facts.temporal_stride, facts.patch_size)
    bucket = _bucket(manifest, height, width, num_frames)
    geometry = Geometry.of(strides, height=height, width=width, num_frames=num_frames)
    steps = request.num_inference_steps
    scale = request.guidance_scale
    negative = request.negative_prompt
    return ResolvedRequest(
        prompt=request.prompt,
        negative_prompt=defaults.negative_prompt if negative is None else negative,
        seed=request.seed,
        rng=request.rng,
        num_inference_steps=defaults.num_inference_steps if steps is None else steps,
        guidance_scale=defaults.guidance_scale if scale is None else scale,
        guidance_rescale=request.guidance_rescale,
        fps=facts.fps if request.fps is None else request.fps,
        solver=request.solver,
        latents=_checked_latents(request.latents, geometry),
        price_per_hour=request.price_per_hour,
        geometry=geometry,
        bucket=bucket,
    )


def _check_words(request: Request) -> None:
    if not request.prompt.strip():
        raise InvalidRequest("the prompt is empty; say what the clip should show")
    if request.rng not in RNGS:
        raise InvalidRequest(f"rng = '{request.rng}' is unknown; use {' or '.join(RNGS)}")
    if not 0 <= request.seed < 2**64:
        raise InvalidRequest(f"seed = {request.seed} is out of range; use 0 to 2^64 - 1")


def _check_numbers(request: Request) -> None:
    steps = request.num_inference_steps
    if steps is not None and not 1 <= steps <= 1000:
        raise InvalidRequest(f"num_inference_steps = {steps} is out of range; use 1 to 1000")
    scale = request.guidance_scale
    if scale is not None and not math.isfinite(scale):
        raise InvalidRequest(f"guidance_scale = {scale} is no finite number; use 1 for no guidance")
    if not 0.0 <= request.guidance_rescale <= 1.0:  # NaN fails too
        raise InvalidRequest(f"guidance_rescale = {request.guidance_rescale} is not in 0 to 1; use 0 for off")
    if request.fps is not None and not (math.isfinite(request.fps) and 0 < request.fps <= 240):
        raise InvalidRequest(f"fps = {request.fps} is out of range; use more than 0 and at most 240")
    price = request.price_per_hour
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise InvalidRequest(f"price_per_hour = {price} is no price; use USD per hour, 0 or more")


def _bucket(manifest: Manifest, height: int, width: int, num_frames: int) -> TransformerBucket:
    buckets = manifest.components.transformer.buckets
    for bucket in buckets:
        if (bucket.height, bucket.width, bucket.num_frames) == (height, width, num_frames):
            return bucket
    there = ", ".join(f"{b.width}x{b.height} with {b.num_frames} frames" for b in buckets)
    raise InvalidRequest(
        f"size {width}x{height} with {num_frames} frames has no graph in '{manifest.name}'; use one of: {there}"
    )


def _checked_latents(latents: NDArray[np.float32] | None, geometry: Geometry) -> NDArray[np.float32] | None:
    if latents is None:
        return None
    array = np.asarray(latents, np.float32)
    if array.shape not in (geometry.latent_shape, geometry.latent_shape[1:]):
        raise InvalidRequest(f"latents have the shape {list(array.shape)}; use {list(geometry.latent_shape)}")
    if not np.isfinite(array).all():
        raise InvalidRequest("latents hold NaN or infinity; pass standard normal noise")
    return array.reshape(geometry.latent_shape)
