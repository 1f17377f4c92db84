"""What lies in a GPU's memory while a clip is made: the networks' weights, and one arena for all else.

The arena is laid out ahead of time from lifetimes: text encoder, transformer and decoder never run together, so their
scratch memory is one. Sizes of latents, outputs and the sampler's buffers are exact. A network's scratch memory is the
cost model's count of the activations alive at its worst moment; an engine that was built states its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sora_runtime import _core
from sora_runtime.arena import Layout, Tensor, lay_out
from sora_runtime.cost.clips import Shape, clip_of
from sora_runtime.cost.memory import USABLE
from sora_runtime.cost.models import Model, load_model
from sora_runtime.cost.roofline import BF16_BYTES, Clip, weight_bytes
from sora_runtime.errors import InvalidRequest
from sora_runtime.geometry import Geometry
from sora_runtime.sampling import FlowSchedule, Guidance, SamplerProgram, UniPC, compile_program

CAPACITIES = (16, 24, 48, 80)  # GB of the GPUs that people rent
PRECISIONS = ("bf16", "fp8", "int8", "nvfp4")
MODELS = (
    *("wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "wan2.2-t2v-a14b", "wan2.2-ti2v-5b"),
    *("ltx-video-0.9.5", "cogvideox-5b", "hunyuanvideo"),
)
# Width and height; of 720p the first that the model's strides divide.
SIZES = {"480p": ((832, 480),), "720p": ((1280, 720), (1280, 704), (1344, 768))}
STAGES = ("text", "denoise", "decode")
_TEXT, _DENOISE, _DECODE = range(3)
_FLOAT = 4
_PICTURES = 2  # one is encoded while the next is made
# How weights may lie on the GPU, the mildest first.
RESIDENT, ONE_NETWORK, BLOCKS = "all", "one network", "blocks"


@dataclass(frozen=True)
class DevicePlan:
    """Of one clip on one GPU, in bytes.

    Attributes:
        model: its title.
        shape: of the clip.
        precision: of the transformer's linear layers; all else is in bf16.
        weights: of the network of each stage, in their order; of a model of two experts, both.
        tensors: all that lies in the arena.
        layout: where.
        active: weights of the transformer that runs at a time: one expert's.
        layers: blocks of the transformer.
    """

    model: str
    shape: Shape
    precision: str
    weights: Mapping[str, float]
    tensors: tuple[Tensor, ...]
    layout: Layout
    active: float
    layers: int

    def needed(self, how: str) -> float:
        """Bytes with all weights on the GPU, with one network's at a time, or with two blocks of the transformer's.

        Where networks take turns, memory is taken stage by stage: what a stage needs is its own weights and what is
        alive in it.
        """
        if how == RESIDENT:
            return sum(self.weights.values()) + self.layout.bytes
        own = dict(self.weights)
        own["transformer"] = self.active if how == ONE_NETWORK else 2.0 * self.active / max(self.layers, 1)
        return max(size + self._alive(stage) for stage, size in enumerate(own.values()))

    def _alive(self, stage: int) -> float:
        return sum(tensor.bytes for tensor in self.tensors if tensor.first <= stage <= tensor.last)

    def fits(self, gigabytes: float) -> str | None:
        """The mildest way that fits into a GPU of so many GB (1e9 bytes); None: none does."""
        usable = gigabytes * 1e9 * USABLE
        return next((how for how in (RESIDENT, ONE_NETWORK, BLOCKS) if self.needed(how) <= usable), None)


def device_plan(model: Model, shape: Shape, precision: str) -> DevicePlan:
    """Lay out the memory of a clip.

    Raises:
        InvalidRequest: a shape that the model cannot represent, or a precision that is not known.
    """
    if precision not in PRECISIONS:
        raise InvalidRequest(f"precision = {precision!r} is not planned for; use one of {', '.join(PRECISIONS)}")
    geometry, clip = clip_of(model, shape)
    tensors = (*_of_text(model, clip), *_of_denoising(geometry, clip), *_of_decoding(model, geometry, clip))
    each = weight_bytes(precision)
    weights = {
        "text encoders": sum(work.parameters for work in clip.conditioners) * BF16_BYTES,
        "transformer": clip.transformer.parameters * each,
        "VAE decoder": 0.0 if clip.decoder is None else clip.decoder.parameters * BF16_BYTES,
    }
    return DevicePlan(
        model.title,
        shape,
        precision,
        weights,
        tensors,
        lay_out(tensors),
        clip.transformer.read * each,
        clip.transformer.layers,
    )


def plans(model: Model) -> list[DevicePlan]:
    """Of a model at 480p and 720p and its own number of frames, in every precision."""
    return [device_plan(model, _shape(model, sizes), precision) for sizes in SIZES.values() for precision in PRECISIONS]


@dataclass(frozen=True)
class StepTraffic:
    """What one fused step of the sampler moves, and what that takes.

    Attributes:
        gpu: of the catalogue.
        bytes: read and written, the mean over a clip's rows.
        seconds: at the bandwidth of the data sheet; no kernel can be faster.
        share: of the transformer's time between two steps, as estimated.
    """

    gpu: str
    bytes: float
    seconds: float
    share: float


def step_traffic(model: str, shape: Shape, gpu: str) -> StepTraffic:
    """Of a model's clip with UniPC, its engine reading and writing bfloat16.

    Raises:
        InvalidRequest: a model, GPU or shape that is not known.
    """
    from sora_runtime.cost.estimate import Ask, estimate_of

    found = estimate_of(
        Ask(model, gpu=gpu, width=shape.width, height=shape.height, num_frames=shape.frames, compiled=True)
    )
    passes = found.clip.passes
    rows = _program(found.clip).rows
    n = math.prod(found.geometry.latent_shape)
    floats = [
        # latents in and out, history in, an entry out, noise in
        2 + np.count_nonzero(row["history"]) + bool(row["store_latents"] or row["store_output"]) + bool(row["noise"])
        for row in rows
    ]
    moved = n * (float(np.mean(floats)) * _FLOAT + (passes + 1) * BF16_BYTES)  # outputs in, next input out
    seconds = moved / found.gpu.bandwidth
    denoise = found.prediction.stages["denoise"]
    return StepTraffic(gpu, moved, seconds, seconds * found.clip.steps / sum(denoise.values()))


def all_plans() -> list[DevicePlan]:
    """Of `MODELS`."""
    return [plan for name in MODELS for plan in plans(load_model(name))]


def default_shape(
    model: Model, width: int | None = None, height: int | None = None, frames: int | None = None
) -> Shape:
    """A clip of the model's defaults where nothing else is said."""
    known = model.defaults
    return Shape(width or known.width, height or known.height, frames or known.frames, known.steps, known.guided)


def _shape(model: Model, sizes: tuple[tuple[int, int], ...]) -> Shape:
    for width, height in sizes:
        shape = default_shape(model, width, height)
        try:
            model.geometry(width, height, shape.frames)
        except InvalidRequest:
            if (width, height) == sizes[-1]:
                raise
            continue
        return shape
    raise InvalidRequest("there is no size to plan for")


def _tensor(name: str, size: float, first: int, last: int | None = None) -> Tensor:
    return Tensor(name, math.ceil(size), first, first if last is None else last)


def _of_text(model: Model, clip: Clip) -> list[Tensor]:
    scratch = max((work.peak_elements for work in clip.conditioners), default=0.0) * BF16_BYTES
    embeddings = model.text_tokens * model.text_width * BF16_BYTES * clip.passes
    return [
        _tensor("text encoder's scratch", scratch, _TEXT),
        _tensor("prompt embeddings", embeddings, _TEXT, _DENOISE),
    ]


def _of_denoising(geometry: Geometry, clip: Clip) -> list[Tensor]:
    n = math.prod(geometry.latent_shape)
    kept = _core.sampler_memory(_program(clip).rows, n=n)
    return [
        _tensor("latents", n * _FLOAT, _DENOISE, _DECODE),
        _tensor("transformer's input", n * BF16_BYTES, _DENOISE),
        _tensor("transformer's outputs", n * BF16_BYTES * clip.passes, _DENOISE),
        *(_tensor(f"sampler's {name}", size, _DENOISE) for name, size in kept.items() if size),
        _tensor("transformer's scratch", clip.transformer.peak_elements * BF16_BYTES, _DENOISE),
    ]


def _program(clip: Clip) -> SamplerProgram:
    """UniPC keeps as much history as any solver here."""
    guidance = Guidance(scale=2.0 if clip.passes > 1 else 1.0)
    return compile_program(UniPC(), FlowSchedule(max_sigma=0.999), max(clip.steps, 4), guidance)


def _of_decoding(model: Model, geometry: Geometry, clip: Clip) -> list[Tensor]:
    if clip.decoder is None:
        return []
    pixels = 3 * model.strides.temporal_stride * geometry.height * geometry.width  # of one chunk
    return [
        _tensor("decoder's scratch", clip.decoder.peak_elements * BF16_BYTES, _DECODE),
        _tensor("decoded frames", pixels * BF16_BYTES, _DECODE),
        _tensor("pictures for the encoder", pixels * _PICTURES, _DECODE),
    ]
