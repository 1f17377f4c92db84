"""The kernels of a CUDA device against the CPU's, on made-up outputs of a network: equal bit by bit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sora_runtime import _core
from sora_runtime.engines.cuda import CudaDevice, PinnedArray
from sora_runtime.engines.engine import TensorSpec
from sora_runtime.sampling import FlowSchedule, Guidance, GuidanceRule, SamplerProgram, UniPC, compile_program

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
    """

    name: str
    scale: float = 1.0
    dtype: str = "float32"
    guidance: tuple[tuple[str, Any], ...] = ()
    rescale: float = 0.0


CASES = (
    Case("plain"),
    Case("guided", 5.0),
    Case("guided in float16", 5.0, "float16"),
    Case("CFG-Zero*, rescaled", 5.0, guidance=(("method", "cfg_zero_star"),), rescale=0.7),
    Case("projected guidance", 5.0, guidance=(("method", "apg"), ("momentum", -0.5), ("norm_threshold", 15.0))),
)


def compare_sampler(device: CudaDevice, case: Case) -> str:
    """The sampler over a whole program; raises AssertionError where one bit differs."""
    program, outputs, start = _program(case), _outputs(case), _normals(0, np.float32)
    expected = _on_host(program, case, outputs, start)
    found = _OnDevice(device, program, case, outputs).run(start)
    different = int(np.count_nonzero(expected.view(np.uint32) != found.view(np.uint32)))
    assert different == 0, f"{different} of {ELEMENTS} latents differ from the CPU's"
    return f"{len(program.rows)} rows over {ELEMENTS:,} elements: all bits equal"


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
    """Decoded values to rgb8."""
    frames = np.random.default_rng(3).standard_normal((3, 5, 48, 64)).astype(np.float32)
    expected = _core.frames_to_rgb8(frames)
    staged, memory = _on(device, frames)
    result, pixels = _room(device, TensorSpec(expected.shape, np.dtype(np.uint8)))
    staged.buffer.copy_to(memory, stream=device.stream)
    stream = int(device.stream.handle)
    _core.cuda.frames_to_rgb8(int(memory.handle), int(pixels.handle), num_frames=5, plane=48 * 64, stream=stream)
    pixels.copy_to(result.buffer, stream=device.stream)
    device.wait()
    different = int(np.count_nonzero(expected != result.array))
    assert different == 0, f"{different} of {expected.size} bytes of rgb8 differ from the CPU's"
    return f"{expected.size:,} bytes of rgb8: all equal"


def _program(case: Case) -> SamplerProgram:
    guidance = Guidance(scale=case.scale, rescale=case.rescale, rule=GuidanceRule(**dict(case.guidance)))
    return compile_program(UniPC(), FlowSchedule(shift=3.0, max_sigma=0.999), STEPS, guidance)


def _normals(seed: int, dtype: Any) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(ELEMENTS).astype(dtype)


def _outputs(case: Case) -> list[list[NDArray[Any]]]:
    """By row and branch, the conditional one first."""
    return [[_normals(10 + 2 * row + branch, case.dtype) for branch in range(2)] for row in range(STEPS + 1)]


def _rules(program: SamplerProgram) -> dict[str, Any]:
    return {"guidance": _core.GuidanceRule(**asdict(program.guidance))}


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
    sampler.run(evaluate)
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
        needed = _core.cuda.workspace_bytes(program.rows, n=ELEMENTS, reuse=_core.StepReuse(), **_rules(program))
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
            reuse=_core.StepReuse(),
            **_rules(program),
        )
        tables = np.frombuffer(self._sampler.tables, np.uint8)
        self._tables, _ = _on(device, tables)
        for row in self._outputs:
            for staged, memory in row:
                staged.buffer.copy_to(memory, stream=device.stream)

    def _put(self) -> None:
        device = self._device

        def evaluate(row: int, _engine: int, _timestep: float, unconditional: bool) -> None:
            memory = self._outputs[row][unconditional][1]
            device.copy(memory, 0, self._branches[unconditional], 0, memory.size)

        self._start.buffer.copy_to(self._latents, stream=device.stream)
        device.copy(self._tables.buffer, 0, self._workspace, 0, self._tables.buffer.size)
        self._sampler.run(evaluate)
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
