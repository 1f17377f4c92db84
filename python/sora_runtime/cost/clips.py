"""From a model and a request to the work of a clip: how often each network runs and over which sizes."""

from __future__ import annotations

from dataclasses import dataclass

from sora_runtime.cost.models import Model
from sora_runtime.cost.roofline import Clip
from sora_runtime.cost.work import Load, Sizes
from sora_runtime.errors import InvalidRequest
from sora_runtime.geometry import Geometry

MOST_FRAMES = 100_000
MOST_PIXELS = 16_384
MOST_STEPS = 10_000


@dataclass(frozen=True)
class Shape:
    """What a clip is: everything that decides its work."""

    width: int
    height: int
    frames: int
    steps: int
    guided: bool
    image: bool = False  # the clip begins with a picture
    prompts: int | None = None  # texts encoded; None: one, and one more with guidance


def check_shape(shape: Shape) -> None:
    """Refuse what is not a clip.

    Raises:
        InvalidRequest: a count out of range.
    """
    for name, value, most in (
        ("width", shape.width, MOST_PIXELS),
        ("height", shape.height, MOST_PIXELS),
        ("frames", shape.frames, MOST_FRAMES),
        ("steps", shape.steps, MOST_STEPS),
    ):
        if not 1 <= value <= most:
            raise InvalidRequest(f"{name} = {value} is out of range; use 1 to {most}")


def clip_of(model: Model, shape: Shape) -> tuple[Geometry, Clip]:
    """The geometry and the work of one clip.

    Raises:
        InvalidRequest: a shape that the model cannot represent.
    """
    check_shape(shape)
    geometry = model.geometry(shape.width, shape.height, shape.frames)
    sizes = model.sizes(geometry)
    repeated, alive = model.tiling
    decoder = encoder = None
    if model.vae is not None:
        decoder = Load.of(model.vae.decoder, sizes, repeated=repeated, peak=alive)
        if shape.image:
            encoder = Load.of(model.vae.encoder, _encoded(model, sizes))
    running = (encoder.work for encoder in model.encoders if encoder.of == "text" or shape.image)
    return geometry, Clip(
        tokens=sizes.tokens,
        transformer=Load.of(model.transformer, sizes),
        steps=shape.steps,
        passes=model.defaults.evaluations if shape.guided else 1,
        decoder=decoder,
        encoder=encoder,
        conditioners=tuple(Load.of(work, sizes) for work in running),
        prompts=shape.prompts or (2 if shape.guided else 1),
        width=model.width,
        head=model.head,
    )


def _encoded(model: Model, sizes: Sizes) -> Sizes:
    """A picture beside the latents is encoded as a whole clip of itself and grey frames (Wan 2.1 I2V does so)."""
    if model.family == "wan" and model.strides.spatial_stride == 8:
        return sizes
    return Sizes(sizes.tokens, sizes.latent_area, 1)
