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
        self._start, self._latents = room_on(device, floats)
        self._result = device.pinned(floats)
        self._branches = [device.allocate(_bytes(halves)) for _ in range(2)]
        self._input = device.allocate(_bytes(halves))
        self._outputs = [[on_device(device, branch) for branch in row] for row in outputs]
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
        self._tables, _ = on_device(device, tables)
        generator = _noise()
        noise = [generator.normal((ELEMENTS,)) for _ in range(int(np.count_nonzero(program.rows["noise"])))]
        self._noise = [on_device(device, drawn) for drawn in noise]
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


def room_on(device: CudaDevice, spec: TensorSpec) -> tuple[PinnedArray, Any]:
    """An array on the host and as much memory on the device."""
    staged = device.pinned(spec)
    return staged, device.allocate(staged.buffer.size)


def on_device(device: CudaDevice, array: NDArray[Any]) -> tuple[PinnedArray, Any]:
    """A copy of an array that a copy may bring to the device, and as much memory there."""
    staged, memory = room_on(device, TensorSpec(array.shape, array.dtype))
    staged.array[...] = array
    return staged, memory
