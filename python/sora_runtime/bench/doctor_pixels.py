"""The kernels around a VAE on a CUDA device: pixels, latents and seams against the CPU's or float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sora_runtime import _core
from sora_runtime.bench.doctor_kernels import on_device, room_on
from sora_runtime.engines.cuda import CudaDevice
from sora_runtime.engines.engine import TensorSpec


def compare_frames(device: CudaDevice) -> str:
    """Decoded values to rgb8, bit by bit, and to NV12, within one level of float64."""
    frames = np.random.default_rng(3).standard_normal((3, 5, 48, 64)).astype(np.float32)
    expected = _core.frames_to_rgb8(frames)
    staged, memory = on_device(device, frames)
    result, pixels = room_on(device, TensorSpec(expected.shape, np.dtype(np.uint8)))
    pictures, nv12 = room_on(device, TensorSpec((5, 72, 64), np.dtype(np.uint8)))
    staged.buffer.copy_to(memory, stream=device.stream)
    stream = int(device.stream.handle)
    _core.cuda.frames_to_rgb8(int(memory.handle), int(pixels.handle), num_frames=5, plane=48 * 64, stream=stream)
    _core.cuda.frames_to_nv12(
        int(memory.handle), int(nv12.handle), shape=(5, 48, 64), pitch=64, picture_bytes=72 * 64, stream=stream
    )
    pixels.copy_to(result.buffer, stream=device.stream)
    nv12.copy_to(pictures.buffer, stream=device.stream)
    device.wait()
    different = int(np.count_nonzero(expected != result.array))
    assert different == 0, f"{different} of {expected.size} bytes of rgb8 differ from the CPU's"
    worst = int(np.abs(pictures.array - nv12_of(frames)).max())
    assert worst <= 1, f"NV12 is up to {worst} levels off"
    return f"{expected.size:,} bytes of rgb8: all equal; NV12 within {worst} level"


def nv12_of(frames: NDArray[np.float32]) -> NDArray[np.float64]:
    """Frames [3, n, height, width] of -1 to 1 as NV12 [n, height * 3 / 2, width], limited range, rounded.

    Coefficients: ITU-R BT.709-6, table 3; a chroma sample is the mean of its four pixels.
    """
    red, green, blue = np.clip(np.rint((frames.astype(np.float64) + 1) * 127.5), 0, 255) / 255
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def chroma(value: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
        n, height, width = value.shape
        differences = ((value - luma) / scale).reshape(n, height // 2, 2, width // 2, 2)
        means: NDArray[np.float64] = 128 + 224 * differences.mean(axis=(2, 4))
        return means

    pairs = np.stack([chroma(blue, 1.8556), chroma(red, 1.5748)], axis=-1)
    planes = [16 + 219 * luma, pairs.reshape(*pairs.shape[:2], -1)]
    rounded: NDArray[np.float64] = np.rint(np.concatenate(planes, axis=1))
    return rounded


def compare_seams(device: CudaDevice) -> str:
    """Latents that are given back their mean and scale, and a seam of two tiles: within rounding of float64."""
    random = np.random.default_rng(4)
    latents, mean, scale = (random.standard_normal(shape).astype(np.float32) for shape in ((16, 5000), 16, 16))
    before, after = (random.standard_normal((3, 8, 640)).astype(np.float32) for _ in range(2))
    given = [on_device(device, array) for array in (latents, mean, scale, before, after)]
    for staged, memory in given:
        staged.buffer.copy_to(memory, stream=device.stream)
    result, decoded = room_on(device, TensorSpec(latents.shape, np.dtype(np.float32)))
    blended = device.pinned(TensorSpec(after.shape, np.dtype(np.float32)))
    at, stream = [int(memory.handle) for _, memory in given], int(device.stream.handle)
    _core.cuda.denormalise(at[0], int(decoded.handle), channels=16, n=5000, mean=at[1], std=at[2], stream=stream)
    _core.cuda.blend(at[3], at[4], shape=(3, 8, 640), before_stride=8 * 640, after_stride=8 * 640, stream=stream)
    decoded.copy_to(result.buffer, stream=device.stream)
    given[4][1].copy_to(blended.buffer, stream=device.stream)
    device.wait()
    weight = (np.arange(8) / 8)[:, None]
    pairs = {
        "latents": (result.array, latents.astype(np.float64) * scale[:, None] + mean[:, None]),
        "a seam": (blended.array, before * (1 - weight) + after * weight),
    }
    for name, (found, expected) in pairs.items():
        worst = float(np.abs(found - expected).max())
        assert worst < 2e-6, f"{name} differs by {worst:.1e} from float64"
    return "latents and a seam of two tiles: within rounding of float64"
