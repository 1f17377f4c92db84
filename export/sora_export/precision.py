"""Which number format each part of a model may have on each target: one table, with its sources."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from sora_runtime.errors import InvalidRequest

EngineName = Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]
Part = Literal["transformer", "text_encoder", "image_encoder", "vae_decoder", "vae_encoder"]

MAX_FP16_KEYS = 65_000
"""Keys above which attention is bfloat16 in a float16 graph: the sum of a softmax row of equal scores
is their number, and float16 ends at 65,504 (autoware-ml, pull request 95: NaN from 65,536 keys)."""


class Precision(StrEnum):
    """The format of a built model's matrix products; everything else follows from `choose`."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"
    NVFP4 = "nvfp4"

    @property
    def quantised(self) -> bool:
        """Whether weights and activations carry scales."""
        return self in (Precision.FP8, Precision.INT8, Precision.NVFP4)


@dataclass(frozen=True)
class Capability:
    """What the tensor cores of one compute capability multiply, as far as an engine has kernels for it.

    `without` says in a clause why a format is missing.
    """

    name: str
    linears: frozenset[Precision]
    without: tuple[tuple[Precision, str], ...]
    source: str


_HALVES = frozenset({Precision.FP16, Precision.BF16})
_MATRIX = (
    "docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix.html, "
    "nvidia.github.io/TransformerEngine/support_matrix.html"
)
_BLACKWELL = "verda.com/blog/gb300-nvl72-architecture: dense INT8 of B200 4.5, of B300 0.15 peta-operations a second"
_NO_FP8 = (Precision.FP8, "FP8 tensor cores begin with compute capability 8.9")
_NO_FP4 = (Precision.NVFP4, "FP4 tensor cores begin with compute capability 10.0")
_NO_BF16 = (Precision.BF16, "bfloat16 tensor cores begin with compute capability 8.0")
_NO_INT8 = (Precision.INT8, "its engines have no INT8 products, and no bfloat16 to go with them")
_B300 = (Precision.INT8, "B300 and GB300 gave up INT8 tensor throughput for FP4, to a thirtieth of FP8's")

CAPABILITIES: dict[str, Capability] = {
    "7.5": Capability("Turing", frozenset({Precision.FP16}), (_NO_BF16, _NO_INT8, _NO_FP8, _NO_FP4), _MATRIX),
    "8.0": Capability("A100", _HALVES | {Precision.INT8}, (_NO_FP8, _NO_FP4), _MATRIX),
    "8.6": Capability("Ampere", _HALVES | {Precision.INT8}, (_NO_FP8, _NO_FP4), _MATRIX),
    "8.9": Capability("Ada", _HALVES | {Precision.INT8, Precision.FP8}, (_NO_FP4,), _MATRIX),
    "9.0": Capability("Hopper", _HALVES | {Precision.INT8, Precision.FP8}, (_NO_FP4,), _MATRIX),
    "10.0": Capability("B200", _HALVES | {Precision.INT8, Precision.FP8, Precision.NVFP4}, (), _BLACKWELL),
    "10.3": Capability("B300", _HALVES | {Precision.FP8, Precision.NVFP4}, (_B300,), _BLACKWELL),
    "12.0": Capability("RTX Blackwell", _HALVES | {Precision.INT8, Precision.FP8, Precision.NVFP4}, (), _MATRIX),
    "12.1": Capability("DGX Spark", _HALVES | {Precision.INT8, Precision.FP8, Precision.NVFP4}, (), _MATRIX),
}

CPU_INT8 = (
    "dynamic int8 linears with 7-bit weights: AVX2's vpmaddubsw saturates on 8-bit ones, "
    "onnxruntime.ai/docs/performance/model-optimizations/quantization.html"
)
CPU_CONVOLUTIONS = (
    "a VAE decoder's convolutions are int8 where calibrated, but the first and last (measured: 1.4 to 1.7 "
    "times as fast a decode at 37 to 40 dB); the rest of it, and an encoder, stay float32"
)
CONVOLUTIONS = (
    "3-D convolutions stay half: INT8 gains nothing and FP8 has kernels for matrix products only "
    "(NVIDIA/TensorRT issues 816, 1176, 2153; TensorRT-RTX documentation, quantised types)"
)
INT8_ATTENTION = (
    "attention stays half: fused INT8 kernels end at 512 keys (NVIDIA/TensorRT issues 2981, 3724) and ModelOpt "
    "refuses them"
)
FP8_ATTENTION = (
    "self-attention without a mask is FP8, which becomes one fused kernel (measured with TensorRT-RTX 1.7.1 for 8.9 "
    "and 12.0, heads of 64 and 128 channels, 1,280 to 8,192 keys); masked and cross-attention stay half"
)
TEXT_ENCODER = (
    "a T5 overflows float16 (huggingface/transformers `_keep_in_fp32_modules`), so text encoders are bfloat16"
)


@dataclass(frozen=True)
class Choice:
    """The formats of one part of a model, and why any differs from what was asked for."""

    linears: Precision
    attention: Precision
    convolutions: Precision
    reason: str


def choose(
    precision: Precision, *, engine: EngineName, part: Part, compute_capability: str | None = None, keys: int = 0
) -> Choice:
    """What `precision` means for one part on one target.

    Args:
        precision: What the user asked for.
        engine: The library that will run the part.
        part: Of the model.
        compute_capability: Such as "8.9"; None asks for any GPU that has the format.
        keys: Number of keys of the longest attention, 0 if unknown.

    Raises:
        InvalidRequest: The target cannot have it; one sentence says why and what to use instead.
    """
    if engine == "onnxruntime":
        return _on_processor(precision, part)
    if precision is Precision.FP32:
        raise InvalidRequest(
            f"precision fp32 is not to be had with {engine}: it has no fused float32 attention; use bf16 or fp16"
        )
    check_capability(precision, compute_capability)
    half = Precision.FP16 if precision is Precision.FP16 else Precision.BF16
    reasons = []
    if half is Precision.FP16 and part == "text_encoder":
        half = Precision.BF16
        reasons.append(TEXT_ENCODER)
    convolutional = part in ("vae_decoder", "vae_encoder")
    linears = precision if precision.quantised and not convolutional else half
    attention = Precision.BF16 if keys > MAX_FP16_KEYS else half
    if attention is not half:
        reasons.append(f"attention over {keys} keys is bf16, as fp16 overflows above {MAX_FP16_KEYS}")
    if precision in (Precision.FP8, Precision.NVFP4) and part == "transformer":
        attention = Precision.FP8
        reasons.append(FP8_ATTENTION)
    elif precision is Precision.INT8 and not convolutional:
        reasons.append(INT8_ATTENTION)
    if precision.quantised and convolutional:
        reasons.append(CONVOLUTIONS)
    return Choice(linears, attention, half, "; ".join(reasons))


def check_capability(precision: Precision, compute_capability: str | None) -> None:
    """Refuses a format that a device has no tensor cores for.

    Raises:
        InvalidRequest: Names the device, what it lacks and what to use.
    """
    if compute_capability is None or precision is Precision.FP32:
        return
    device = CAPABILITIES.get(compute_capability)
    if device is None:
        known = ", ".join(CAPABILITIES)
        raise InvalidRequest(f"compute capability {compute_capability} is not known; use one of {known}")
    if precision not in device.linears:
        why = dict(device.without)[precision]
        best = next(p for p in (Precision.FP8, Precision.INT8, Precision.BF16, Precision.FP16) if p in device.linears)
        raise InvalidRequest(
            f"precision {precision} is not to be had on compute capability {compute_capability} "
            f"({device.name}): {why}; use {best}"
        )


def _on_processor(precision: Precision, part: Part) -> Choice:
    if precision not in (Precision.FP32, Precision.INT8):
        raise InvalidRequest(
            f"precision {precision} is not to be had with onnxruntime: on a CPU it has no kernels that gain by it; "
            "use int8 or fp32"
        )
    if precision is Precision.FP32:
        return Choice(precision, precision, precision, "")
    convolutional = part in ("vae_decoder", "vae_encoder")
    linears = Precision.FP32 if convolutional else Precision.INT8
    convolutions = Precision.INT8 if part == "vae_decoder" else Precision.FP32
    return Choice(linears, Precision.FP32, convolutions, CPU_CONVOLUTIONS if convolutional else CPU_INT8)
