"""Types of the compiled core; see csrc/bindings for the documentation of each."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ROW_DTYPE: np.dtype[np.void]

class CancelledError(RuntimeError): ...

def has_amx() -> bool: ...
def instruction_set() -> Literal["avx2", "baseline"]: ...
def philox_normal(n: int, *, seed: int, stream: int = 0, num_threads: int = 1) -> NDArray[np.float32]: ...
def frames_to_rgb8(frames: NDArray[np.float32], *, num_threads: int = 1) -> NDArray[np.uint8]: ...

class TorchGenerator:
    def __init__(self, seed: int) -> None: ...
    def randn(self, n: int) -> NDArray[np.float32]: ...

class NoiseGenerator:
    def __init__(self, seed: int, *, rng: str = "philox", first_stream: int = 0, num_threads: int = 1) -> None: ...
    def normal(self, shape: Sequence[int]) -> NDArray[np.float32]: ...

class CacheStats:
    @property
    def hits(self) -> int: ...
    @property
    def misses(self) -> int: ...
    @property
    def evicted(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def entries(self) -> int: ...
    @property
    def capacity(self) -> int: ...

class EmbeddingCache:
    def __init__(self, capacity_bytes: int) -> None: ...
    def get_or_compute(self, key: bytes, compute: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]: ...
    def find(self, key: bytes) -> NDArray[np.float32] | None: ...
    def insert(self, key: bytes, value: NDArray[np.float32]) -> NDArray[np.float32]: ...
    def contains(self, key: bytes) -> bool: ...
    def clear(self) -> None: ...
    def set_capacity(self, capacity_bytes: int) -> None: ...
    @property
    def stats(self) -> CacheStats: ...

class CancelToken:
    def __init__(self) -> None: ...
    def cancel(self) -> None: ...
    @property
    def cancelled(self) -> bool: ...

class StepReuse:
    def __init__(
        self,
        *,
        criterion: str = "none",
        threshold: float = 0.0,
        first: int = 0,
        last: int = 0,
        most_in_a_row: int = 0,
        order: int = 0,
        residual: bool = False,
        polynomial: Sequence[float] = (0.0, 0.0, 0.0, 0.0, 0.0),
    ) -> None: ...

class GuidanceRule:
    def __init__(
        self, *, method: str = "cfg", eta: float = 0.0, momentum: float = 0.0, norm_threshold: float = 0.0
    ) -> None: ...

class RunStatistics:
    @property
    def evaluations(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    @property
    def row_seconds(self) -> list[float]: ...
    @property
    def kernel_seconds(self) -> float: ...
    @property
    def done(self) -> list[int]: ...
    @property
    def norms(self) -> NDArray[np.void]: ...

class Sampler:
    def __init__(
        self,
        rows: NDArray[np.void],
        latents: NDArray[np.float32],
        *,
        model_input: NDArray[Any] | None = None,
        conditional: NDArray[Any],
        unconditional: NDArray[Any] | None = None,
        input_dtype: str = "float32",
        output_dtype: str = "float32",
        num_threads: int = 1,
        reuse: StepReuse = ...,
        guidance: GuidanceRule = ...,
    ) -> None: ...
    def run(
        self,
        denoiser: Callable[[int, int, float, bool], object],
        *,
        noise: NoiseGenerator | None = None,
        on_step: Callable[[int], object] | None = None,
        cancel: CancelToken | None = None,
    ) -> RunStatistics: ...

def sampler_memory(
    rows: NDArray[np.void], *, n: int, reuse: StepReuse = ..., guidance: GuidanceRule = ...
) -> dict[str, int]: ...

class _CudaBuffers:
    def __init__(
        self,
        *,
        n: int,
        latents: int,
        conditional: int,
        model_input: int = 0,
        unconditional: int = 0,
        input_dtype: str = "float32",
        output_dtype: str = "float32",
    ) -> None: ...

class _CudaSampler:
    def __init__(
        self,
        rows: NDArray[np.void],
        buffers: _CudaBuffers,
        *,
        workspace: int,
        workspace_bytes: int,
        stream: int,
        reuse: StepReuse = ...,
        guidance: GuidanceRule = ...,
    ) -> None: ...
    @property
    def tables(self) -> bytes: ...
    def run(
        self,
        denoiser: Callable[[int, int, float, bool], object],
        *,
        noise: Callable[[int, int], object] | None = None,
        on_step: Callable[[int], object] | None = None,
        cancel: CancelToken | None = None,
    ) -> RunStatistics: ...

class cuda:  # noqa: N801 - a submodule; there only where the kernels were built for CUDA
    Buffers = _CudaBuffers
    Sampler = _CudaSampler
    @staticmethod
    def workspace_bytes(
        rows: NDArray[np.void], *, n: int, reuse: StepReuse = ..., guidance: GuidanceRule = ...
    ) -> int: ...
    @staticmethod
    def frames_to_rgb8(
        frames: int, rgb8: int, *, num_frames: int, plane: int, dtype: str = "float32", stream: int
    ) -> None: ...
    @staticmethod
    def frames_to_nv12(
        frames: int,
        pictures: int,
        *,
        shape: tuple[int, int, int],
        pitch: int,
        picture_bytes: int,
        dtype: str = "float32",
        stream: int,
    ) -> None: ...
    @staticmethod
    def denormalise(
        latents: int,
        decoded: int,
        *,
        channels: int,
        n: int,
        mean: int,
        std: int,
        dtype: str = "float32",
        stream: int,
    ) -> None: ...
    @staticmethod
    def blend(
        before: int,
        after: int,
        *,
        shape: tuple[int, int, int],
        before_stride: int,
        after_stride: int,
        stream: int,
    ) -> None: ...
