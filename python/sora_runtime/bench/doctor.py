"""Checks of a machine's GPU path: driver, libraries, kernels against the CPU bit by bit, graphs, and whole clips."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sora_runtime import _core
from sora_runtime.bench.doctor_engines import compare_networks
from sora_runtime.bench.doctor_kernels import CASES, compare_graph, compare_sampler
from sora_runtime.bench.doctor_pixels import compare_frames, compare_seams
from sora_runtime.engines.cuda import CudaDevice
from sora_runtime.engines.libraries import cuda_status, engine_libraries

Status = Literal["passed", "failed", "missing"]
REBUILD = "install it where nvcc is (SORA_CUDA=ON says what is wrong)"


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: what was checked.
        status: `missing` where something that it needs is not here.
        detail: a sentence: what was found, or what is missing and the remedy.
        seconds: that it took.
    """

    name: str
    status: Status
    detail: str
    seconds: float


class Missing(Exception):
    """Something that a check needs is not here; the message says what, and the remedy."""


@dataclass(frozen=True)
class ClipCheck:
    """A bundle that was built for this GPU, and how far its clips may be from the CPU's.

    Attributes:
        name: of the precision.
        make: builds the bundle, or finds it.
        psnr: decibels that the worst frame must reach against float32 on the CPU.
        error: relative L2 of a network's outputs, the most that they may be from ONNX Runtime's in float32.
    """

    name: str
    make: Callable[[], Path]
    psnr: float
    error: float


def run_checks(clips: Sequence[ClipCheck] = ()) -> Iterator[Check]:
    """All checks in an order in which the first that is not passed explains those after it.

    Args:
        clips: bundles to make clips of; none leaves whole clips out.
    """
    yield _check("driver", _driver)
    yield _check("packages", _packages)
    yield _check("kernels in the module", _module)
    opened: list[CudaDevice] = []
    yield _check("device", lambda: _open(opened))
    device = opened[0] if opened else None
    for case in CASES:
        yield _check(f"sampler, {case.name}", lambda case=case: compare_sampler(_needed(device), case))  # type: ignore[misc]
    yield _check("frames to pixels", lambda: compare_frames(_needed(device)))
    yield _check("latents and seams", lambda: compare_seams(_needed(device)))
    yield _check("graph against stream", lambda: compare_graph(_needed(device)))
    for clip in clips:
        yield _check(f"clips in {clip.name}", lambda clip=clip: _compare_clips(_needed(device), clip))  # type: ignore[misc]


def _check(name: str, work: Callable[[], str]) -> Check:
    started = time.perf_counter()
    try:
        status, detail = "passed", work()
    except Missing as missing:
        status, detail = "missing", str(missing)
    except Exception as error:  # a report with a failed check is worth more than a traceback
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        status, detail = "failed", first
    return Check(name, status, detail, time.perf_counter() - started)  # type: ignore[arg-type]


def _driver() -> str:
    status = cuda_status()
    if status.reason is not None:
        raise Missing(f"{status.reason}; install an NVIDIA driver on a machine with a GPU")
    return f"CUDA {status.driver}, devices of compute capability {', '.join(status.compute_capabilities)}"


def _packages() -> str:
    try:
        import cuda.core
    except ImportError as error:
        raise Missing(f"cuda.core cannot be imported ({error}); pip install 'sora-runtime[gpu]'") from error
    found = [each for each in engine_libraries() if each.name.startswith("tensorrt") and each.version is not None]
    if not found:
        raise Missing("neither tensorrt_rtx nor tensorrt is installed; pip install 'sora-runtime[gpu]'")
    libraries = ", ".join(f"{each.name} {each.version}" for each in found)
    return f"cuda.core {cuda.core.__version__}, {libraries}"


def _module() -> str:
    if not hasattr(_core, "cuda"):
        raise Missing(f"this sora_runtime was built without CUDA kernels; {REBUILD}")
    return f"{Path(str(_core.__file__)).name} has them"


def _open(opened: list[CudaDevice]) -> str:
    if cuda_status().reason is not None or not hasattr(_core, "cuda"):
        raise Missing("no device can be used; see above")
    opened.append(CudaDevice())
    return f"{opened[0].name}, compute capability {opened[0].capability}"


def _needed(device: CudaDevice | None) -> CudaDevice:
    if device is None:
        raise Missing("it needs a device; see above")
    return device


def _compare_clips(device: CudaDevice, clip: ClipCheck) -> str:
    from sora_runtime.denoise_cuda import CudaDenoiser
    from sora_runtime.runtime import Runtime

    asked: dict[str, Any] = {"prompt": "a red circle moving left on a navy background", "seed": 7}
    with Runtime.load("wan-pocket") as runtime:
        expected = runtime.generate(**asked).frames
    folder = clip.make()
    errors = compare_networks(folder)
    farthest = max(errors, key=lambda graph: errors[graph])
    assert errors[farthest] <= clip.error, (
        f"'{farthest}' is {errors[farthest]:.1e} from ONNX Runtime; at most {clip.error:g} is expected"
    )
    with Runtime.load(folder) as runtime:
        # Call by call, recorded, and launched again: all the same.
        made = [runtime.generate(**asked) for _ in range(3)]
        (stages,) = runtime._stages.values()
        denoiser = stages.denoiser
        how = denoiser.how() if isinstance(denoiser, CudaDenoiser) else "on the CPU"
    first = made[0].frames
    for later in made[1:]:
        assert np.array_equal(first, later.frames), "a clip that is one graph differs from one that is put call by call"
    worst = _worst_psnr(expected, first)
    assert worst >= clip.psnr, f"the worst frame has {worst:.1f} dB against the CPU's; {clip.psnr:g} are expected"
    seconds = made[-1].receipt.seconds
    networks = f"networks within {errors[farthest]:.1e} of ONNX Runtime"
    return f"{networks}, worst frame {worst:.1f} dB, denoising {seconds.denoise * 1e3:.1f} ms on {device.name}, {how}"


def _worst_psnr(expected: NDArray[np.uint8], found: NDArray[np.uint8]) -> float:
    errors = np.mean((expected.astype(np.float64) - found) ** 2, axis=(1, 2, 3))
    return float(10 * np.log10(255**2 / max(float(errors.max()), 1e-9)))
