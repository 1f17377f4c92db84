"""The kernels of a CUDA device against the CPU's, on made-up outputs of a network: equal bit by bit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sora_runtime import _core
from sora_runtime.engines.cuda import CudaDevice, PinnedArray
from sora_runtime.engines.engine import TensorSpec
from sora_runtime.sampling import (
    LCM,
    FlowSchedule,
    Guidance,
    GuidanceRule,
    SamplerProgram,
    StepReuse,
    UniPC,
    apply_reuse,
    compile_program,
)

ELEMENTS = 50_021  # more than three blocks of sums, with a tail
STEPS = 6


@dataclass(frozen=True)
class Case:
    """A program over made-up outputs.

    Attributes:
        name: in the report.
        scale: of guidance.
        dtype: of the outputs and of the network's input.
        guidance: fields of `GuidanceRule`.
        rescale: of guidance.
        reuse: of steps; its sums decide which rows are evaluated.
        noisy: rows draw noise, as LCM's do.
    """

    name: str
    scale: float = 1.0
    dtype: str = "float32"
    guidance: tuple[tuple[str, Any], ...] = ()
    rescale: float = 0.0
    reuse: StepReuse | None = None
    noisy: bool = False


CASES = (
    Case("plain"),
    Case("guided", 5.0),
    Case("guided in float16", 5.0, "float16"),
    Case("guided in bfloat16", 5.0, "bfloat16"),
    Case("noise", noisy=True),
    Case("CFG-Zero*, rescaled", 5.0, guidance=(("method", "cfg_zero_star"),), rescale=0.7),
    Case("projected guidance", 5.0, guidance=(("method", "apg"), ("momentum", -0.5), ("norm_threshold", 15.0))),
    Case("step reuse", 5.0, reuse=StepReuse("easycache", threshold=10.0, warm_up=2, order=1)),
)


def compare_sampler(device: CudaDevice, case: Case) -> str:
    """The sampler over a whole program; raises AssertionError where one bit differs."""
    if case.dtype == "bfloat16":
        import ml_dtypes  # noqa: F401 - numpy knows the name from then on
    program, outputs, start = _program(case), _outputs(case), _normals(0, np.float32)
    expected = _on_host(program, case, outputs, start)
    work = _OnDevice(device, program, case, outputs)
    found = work.run(start)
    different = int(np.count_nonzero(expected.view(np.uint32) != found.view(np.uint32)))
    assert different == 0, f"{different} of {ELEMENTS} latents differ from the CPU's"
    skipped = f", {work.skipped} evaluations skipped" if case.reuse else ""
    return f"{len(program.rows)} rows over {ELEMENTS:,} elements{skipped}: all bits equal"


def compare_graph(device: CudaDevice) -> str:
    """The same work recorded as a graph and launched twice, from other latents the second time."""
    case = CASES[1]
    program, outputs = _program(case), _outputs(case)
    work = _OnDevice(device, program, case, outputs)
    starts = [_normals(seed, np.float32) for seed in (1, 2)]
    put = [work.run(start) for start in starts]
    launched = work.launch(starts)
    for direct, recorded in zip(put, launched, strict=True):
        assert np.array_equal(direct, recorded), "a graph's latents differ from those of the stream"
    return "one recording, two launches: equal to the stream's"


def compare_frames(device: CudaDevice) -> str:
    """Decoded values to rgb8, bit by bit, and to NV12, within one level of float64."""
    frames = np.random.default_rng(3).standard_normal((3, 5, 48, 64)).astype(np.float32)
    expected = _core.frames_to_rgb8(frames)
    staged, memory = _on(device, frames)
    result, pixels = _room(device, TensorSpec(expected.shape, np.dtype(np.uint8)))
    pictures, nv12 = _room(device, TensorSpec((5, 72, 64), np.dtype(np.uint8)))
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
        return 128 + 224 * differences.mean(axis=(2, 4))

    pairs = np.stack([chroma(blue, 1.8556), chroma(red, 1.5748)], axis=-1)
    planes = [16 + 219 * luma, pairs.reshape(*pairs.shape[:2], -1)]
    return np.rint(np.concatenate(planes, axis=1))


def compare_seams(device: CudaDevice) -> str:
    """Latents that are given back their mean and scale, and a seam of two tiles: within rounding of float64."""
    random = np.random.default_rng(4)
    latents, mean, scale = (random.standard_normal(shape).astype(np.float32) for shape in ((16, 5000), 16, 16))
    before, after = (random.standard_normal((3, 8, 640)).astype(np.float32) for _ in range(2))
    given = [_on(device, array) for array in (latents, mean, scale, before, after)]
    for staged, memory in given:
        staged.buffer.copy_to(memory, stream=device.stream)
    result, decoded = _room(device, TensorSpec(latents.shape, np.dtype(np.float32)))
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


def _program(case: Case) -> SamplerProgram:
    guidance = Guidance(scale=case.scale, rescale=case.rescale, rule=GuidanceRule(**dict(case.guidance)))
    solver = LCM() if case.noisy else UniPC()
    program = compile_program(solver, FlowSchedule(shift=3.0, max_sigma=0.999), STEPS, guidance)
    return program if case.reuse is None else apply_reuse(program, case.reuse)


def _normals(seed: int, dtype: Any) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(ELEMENTS).astype(dtype)


def _outputs(case: Case) -> list[list[NDArray[Any]]]:
    """By row and branch, the conditional one first."""
    return [[_normals(10 + 2 * row + branch, case.dtype) for branch in range(2)] for row in range(STEPS + 1)]


def _rules(program: SamplerProgram) -> dict[str, Any]:
    return {
        "guidance": _core.GuidanceRule(**asdict(program.guidance)),
        "reuse": _core.StepReuse(**asdict(program.reuse)),
    }


def _noise() -> _core.NoiseGenerator:
    return _core.NoiseGenerator(5)


def _on_host(
    program: SamplerProgram, case: Case, outputs: list[list[NDArray[Any]]], start: NDArray[np.float32]
) -> NDArray[np.float32]:
    latents = start.copy()
    c, u = np.empty(ELEMENTS, case.dtype), np.empty(ELEMENTS, case.dtype)

    def evaluate(row: int, _engine: int, _timestep: float, unconditional: bool) -> None:
        np.copyto(u if unconditional else c, outputs[row][unconditional])

    shared = case.dtype == "float32"
    sampler = _core.Sampler(
        program.rows,
        latents,
        model_input=None if shared else np.empty(ELEMENTS, case.dtype),
        conditional=c,
        unconditional=u,
        input_dtype=case.dtype,
        output_dtype=case.dtype,
        **_rules(program),
    )
    sampler.run(evaluate, noise=_noise() if case.noisy else None)
    return latents


class _OnDevice:
    """The same on the device: outputs lie there, and an evaluation is a copy."""

    def __init__(
        self, device: CudaDevice, program: SamplerProgram, case: Case, outputs: list[list[NDArray[Any]]]
    ) -> None:
        self._device = device
        floats = TensorSpec((ELEMENTS,), np.dtype(np.float32))
        halves = TensorSpec((ELEMENTS,), np.dtype(case.dtype))
        self._start, self._latents = _room(device, floats)
        self._result = device.pinned(floats)
        self._branches = [device.allocate(_bytes(halves)) for _ in range(2)]
        self._input = device.allocate(_bytes(halves))
        self._outputs = [[_on(device, branch) for branch in row] for row in outputs]
        needed = _core.cuda.workspace_bytes(program.rows, n=ELEMENTS, **_rules(program))
        self._workspace = device.allocate(needed)
        buffers = _core.cuda.Buffers(
            n=ELEMENTS,
            latents=int(self._latents.handle),
            conditional=int(self._branches[0].handle),
            unconditional=int(self._branches[1].handle),
            model_input=0 if case.dtype == "float32" else int(self._input.handle),
            input_dtype=case.dtype,
            output_dtype=case.dtype,
        )
        self._sampler = _core.cuda.Sampler(
            program.rows,
            buffers,
            workspace=int(self._workspace.handle),
            workspace_bytes=needed,
            stream=int(device.stream.handle),
            **_rules(program),
        )
        tables = np.frombuffer(self._sampler.tables, np.uint8)
        self._tables, _ = _on(device, tables)
        generator = _noise()
        noise = [generator.normal((ELEMENTS,)) for _ in range(int(np.count_nonzero(program.rows["noise"])))]
        self._noise = [_on(device, drawn) for drawn in noise]
        for staged, memory in (*self._noise, *(pair for row in self._outputs for pair in row)):
            staged.buffer.copy_to(memory, stream=device.stream)
        self.skipped = 0

    def _put(self) -> None:
        device = self._device

        def evaluate(row: int, _engine: int, _timestep: float, unconditional: bool) -> None:
            memory = self._outputs[row][unconditional][1]
            device.copy(memory, 0, self._branches[unconditional], 0, memory.size)

        slots = iter(self._noise)

        def draw(address: int, n: int) -> None:
            _, memory = next(slots)
            device.copy(memory, 0, self._workspace, address - int(self._workspace.handle), memory.size)

        self._start.buffer.copy_to(self._latents, stream=device.stream)
        device.copy(self._tables.buffer, 0, self._workspace, 0, self._tables.buffer.size)
        self.skipped = self._sampler.run(evaluate, noise=draw).skipped
        self._latents.copy_to(self._result.buffer, stream=device.stream)

    def run(self, start: NDArray[np.float32]) -> NDArray[np.float32]:
        """Call by call."""
        self._start.array[:] = start
        self._put()
        self._device.wait()
        return self._result.array.copy()

    def launch(self, starts: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Recorded once."""
        graph = self._device.record(self._put)
        found = []
        for start in starts:
            self._start.array[:] = start
            graph.launch()
            self._device.wait()
            found.append(self._result.array.copy())
        return found


def _bytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape)) * spec.dtype.itemsize


def _room(device: CudaDevice, spec: TensorSpec) -> tuple[PinnedArray, Any]:
    """An array on the host and as much memory on the device."""
    staged = device.pinned(spec)
    return staged, device.allocate(staged.buffer.size)


def _on(device: CudaDevice, array: NDArray[Any]) -> tuple[PinnedArray, Any]:
    staged, memory = _room(device, TensorSpec(array.shape, array.dtype))
    staged.array[...] = array
    return staged, memory
