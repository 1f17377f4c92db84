"""A stand-in for `_core.cuda`: sampler and pixel kernels on a stream, computed by numpy or the CPU's kernels."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np

from gpu.doubles import Gpu, Operation, Stream, content
from sora_runtime import _core

BT709 = np.array([0.2126, 0.7152, 0.0722])


class CoreDouble:
    """What `_core.cuda` is to the code under test: the sampler's step in numpy, in the kernels' order of operations."""

    def __init__(self, gpu: Gpu) -> None:
        self.Buffers = SimpleNamespace
        self.gpu = gpu

    def frames_to_rgb8(
        self, frames: int, rgb8: int, *, num_frames: int, plane: int, dtype: str = "float32", stream: int
    ) -> None:
        assert dtype == "float32", "the doubles' engines write float32 frames"
        size = 3 * num_frames * plane

        def run() -> None:
            values = np.frombuffer(content(frames, 4 * size), np.float32).reshape(3, num_frames, plane, 1)
            pixels = _core.frames_to_rgb8(values)
            ctypes.memmove(rgb8, pixels.ctypes.data, size)

        self.gpu.streams[stream].put(Operation("rgb8", run, [(frames, 4 * size)], [(rgb8, size)]))

    def frames_to_nv12(
        self,
        frames: int,
        pictures: int,
        *,
        shape: tuple[int, int, int],
        pitch: int,
        picture_bytes: int,
        dtype: str = "float32",
        stream: int,
    ) -> None:
        n, height, width = shape
        assert dtype == "float32" and pitch == width and picture_bytes == height * width * 3 // 2
        size = 3 * n * height * width

        def run() -> None:
            levels = _core.frames_to_rgb8(np.frombuffer(content(frames, 4 * size), np.float32).reshape(3, *shape))
            for index, picture in enumerate(levels.astype(np.float64) / 255):
                mean = picture.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
                luma, shared = picture @ BT709, mean @ BT709
                planes = np.empty((height * 3 // 2, width))
                planes[:height] = 16 + 219 * luma
                planes[height:, 0::2] = 128 + 224 * (mean[..., 2] - shared) / 1.8556
                planes[height:, 1::2] = 128 + 224 * (mean[..., 0] - shared) / 1.5748
                found = np.rint(planes).astype(np.uint8)
                ctypes.memmove(pictures + index * picture_bytes, found.ctypes.data, found.size)

        self.gpu.streams[stream].put(Operation("nv12", run, [(frames, 4 * size)], [(pictures, size // 2)]))

    def denormalise(
        self,
        latents: int,
        decoded: int,
        *,
        channels: int,
        n: int,
        mean: int,
        std: int,
        dtype: str = "float32",
        stream: int,
    ) -> None:
        size = 4 * channels * n

        def run() -> None:
            values = np.frombuffer(content(latents, size), np.float32).reshape(channels, n)
            by_channel = [np.frombuffer(content(at, 4 * channels), np.float32)[:, None] for at in (std, mean)]
            found = values * by_channel[0] + by_channel[1]
            ctypes.memmove(decoded, found.ctypes.data, size)

        reads = [(latents, size), (mean, 4 * channels), (std, 4 * channels)]
        self.gpu.streams[stream].put(Operation("denormalise", run, reads, [(decoded, size)]))

    def blend(
        self,
        before: int,
        after: int,
        *,
        shape: tuple[int, int, int],
        before_stride: int,
        after_stride: int,
        stream: int,
    ) -> None:
        outer, shared, inner = shape
        size = 4 * shared * inner
        places = [(before + 4 * each * before_stride, after + 4 * each * after_stride) for each in range(outer)]

        def run() -> None:
            weight = (np.arange(shared, dtype=np.float32) / np.float32(shared))[:, None]
            for source, target in places:
                one, other = (
                    np.frombuffer(content(at, size), np.float32).reshape(shared, inner) for at in (source, target)
                )
                found = other * weight + one * (1 - weight)
                ctypes.memmove(target, found.ctypes.data, size)

        reads = [(at, size) for pair in places for at in pair]
        writes = [(target, size) for _, target in places]
        self.gpu.streams[stream].put(Operation("blend", run, reads, writes))

    def workspace_bytes(self, rows: Any, *, n: int, reuse: Any, guidance: Any) -> int:
        return (
            -(-rows.nbytes // 256) * 256
            + 256 * 4
            + (int(np.max(np.count_nonzero(rows["history"], axis=1))) + 2) * (-(-4 * n // 256) * 256)
        )

    def Sampler(  # noqa: N802
        self, rows: Any, buffers: Any, *, workspace: int, workspace_bytes: int, stream: int, reuse: Any, guidance: Any
    ) -> SamplerDouble:
        assert workspace_bytes >= self.workspace_bytes(rows, n=buffers.n, reuse=reuse, guidance=guidance)
        plain = buffers.input_dtype == "float32" and is_plain(rows, reuse, guidance)
        made = SamplerDouble if plain else WaitingSamplerDouble
        return made(self.gpu.streams[stream], rows, buffers, workspace, {"reuse": reuse, "guidance": guidance})


def is_plain(rows: Any, reuse: Any, guidance: Any) -> bool:
    """Whether rows depend on nothing but their coefficients: the CPU's sampler gives the same without the rules."""
    random = np.random.default_rng(0)
    drawn = [random.standard_normal(64).astype(np.float32) for _ in range(3)]
    found = []
    for rules in ({"reuse": reuse, "guidance": guidance}, {}):
        latents, conditional, unconditional = (each.copy() for each in drawn)
        sampler = _core.Sampler(
            rows, latents, model_input=None, conditional=conditional, unconditional=unconditional, **rules
        )
        statistics = sampler.run(lambda *_: None, noise=_core.NoiseGenerator(0))
        found.append((latents.tobytes(), statistics.evaluations, len(statistics.norms)))
    return found[0] == found[1] and not np.any(rows["guidance_rescale"])


class SamplerDouble:
    """Rows without guidance by sums and without step reuse."""

    def __init__(self, stream: Stream, rows: Any, buffers: Any, workspace: int, rules: dict[str, Any]) -> None:
        self._stream, self._rows, self._buffers, self._workspace = stream, rows, buffers, workspace
        self._rules = rules
        self.tables = rows.tobytes().ljust(-(-rows.nbytes // 256) * 256, b"\0")

    def run(self, denoiser: Any, *, noise: Any = None, on_step: Any = None, cancel: Any = None) -> Any:
        b, size = self._buffers, 4 * self._buffers.n
        start = self._workspace + len(self.tables)
        noise_at = start
        depth = int(np.max(np.count_nonzero(self._rows["history"], axis=1))) + 1
        ring = [start + -(-size // 256) * 256 * (1 + i) for i in range(depth)]
        kept, made = 0, 0
        for index, row in enumerate(self._rows):
            guided = row["guidance_scale"] != 1.0
            for unconditional in (False, True)[: 1 + guided]:
                denoiser(index, int(row["engine"]), float(row["timestep"]), unconditional)
                made += 1
            if row["noise"] != 0.0:
                noise(noise_at, b.n)
            entries = [ring[(kept - 1 - j) % depth] for j in range(np.count_nonzero(row["history"]))]
            store = ring[kept % depth] if row["store_latents"] != 0.0 or row["store_output"] != 0.0 else None
            kept += store is not None
            self._step(index, guided, entries, store, noise_at)
            if on_step is not None:
                on_step(index + 1)
        return SimpleNamespace(evaluations=made, skipped=0, done=[1] * len(self._rows), norms=[], row_seconds=[])

    def _floats(self, address: int) -> Any:
        return np.frombuffer(content(address, 4 * self._buffers.n), np.float32)

    def _row(self, index: int) -> Any:
        """As it lies on the device when the step runs."""
        rows = np.frombuffer(content(self._workspace, self._rows.nbytes), self._rows.dtype)
        return rows[index]

    def _step(self, index: int, guided: bool, entries: list[int], store: int | None, noise: int) -> None:
        b, size = self._buffers, 4 * self._buffers.n
        places = [b.latents, b.conditional, *([b.unconditional] if guided else []), *entries]

        def run() -> None:
            row = self._row(index)
            x, g = self._floats(b.latents), self._floats(b.conditional)
            if guided:
                u = self._floats(b.unconditional)
                g = u + np.float32(row["guidance_scale"]) * (g - u)
            following = np.float32(row["latents"]) * x + np.float32(row["output"]) * g
            kept = np.float32(row["store_latents"]) * x + np.float32(row["store_output"]) * g
            for factor, entry in zip(row["history"], entries, strict=False):
                following = following + np.float32(factor) * self._floats(entry)
            if row["noise"] != 0.0:
                following = following + np.float32(row["noise"]) * self._floats(noise)
            if store is not None:
                ctypes.memmove(store, kept.ctypes.data, size)
            ctypes.memmove(b.latents, following.ctypes.data, size)

        writes = [(b.latents, size), *([(store, size)] if store is not None else [])]
        self._stream.put(Operation("step", run, [(place, size) for place in places], writes))


class WaitingSamplerDouble(SamplerDouble):
    """Any rows, by the CPU's sampler, which waits for each evaluation: as the device does where step reuse decides."""

    def run(self, denoiser: Any, *, noise: Any = None, on_step: Any = None, cancel: Any = None) -> Any:
        self._stream.gpu.insist_no_recording("a decision")
        b = self._buffers

        def view(address: int, dtype: str) -> Any:
            size = b.n * np.dtype(dtype).itemsize
            return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype)

        def evaluate(row: int, engine: int, timestep: float, unconditional: bool) -> None:
            denoiser(row, engine, timestep, unconditional)
            self._stream.sync()

        self._stream.sync()
        sampler = _core.Sampler(
            self._rows,
            view(b.latents, "float32"),
            model_input=view(b.model_input, b.input_dtype) if b.model_input else None,
            conditional=view(b.conditional, b.output_dtype),
            unconditional=view(b.unconditional, b.output_dtype),
            input_dtype=b.input_dtype,
            output_dtype=b.output_dtype,
            **self._rules,
        )
        return sampler.run(evaluate, on_step=on_step, cancel=cancel)
