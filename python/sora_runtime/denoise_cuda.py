"""The transformers of a bundle on a CUDA device: a trajectory on one stream, and from its second clip on one graph.

Everything that a clip brings (start latents, embeddings, timesteps, coefficients, noise) lies at the head of one arena
and goes there in one copy; then every engine call and every step of the sampler follows on the stream without a word
from the host. What is put on the stream is the same for all clips of a program's structure, so it is recorded once and
launched as one CUDA graph: a new prompt, seed or guidance scale changes only what is copied. Where a criterion of step
reuse decides by what was measured, the host must look at every row, and nothing is recorded.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .clip_memory import ClipMemory, count_of, noise_rows, rules_of, stride_of, structure_of
from .denoise import SHARED_CONDITIONS, VARYING, DenoiseResult, Embeddings, check_finite, fill
from .engines.cuda import PinnedArray
from .engines.engine import Array, TensorSpec
from .engines.tensorrt import TensorRtEngine
from .errors import Cancelled, EngineError
from .sampling.program import SamplerProgram

_LOG = logging.getLogger(__name__)
_FLOAT = np.dtype(np.float32)
_STRUCTURES = 3  # of programs, whose memory and graphs are kept
_ROWS_AHEAD = 2


@dataclass
class _Prepared:
    """What all clips of one structure share; `graph` once it was recorded."""

    layout: ClipMemory
    copied: int  # bytes at the head of the arena that each clip brings
    arena: Any
    staged: PinnedArray
    result: PinnedArray
    sampler: Any
    contexts: list[list[Any]]  # [engine][unconditional]
    rows: int
    used: list[Any] = field(default_factory=list)  # contexts that have run
    runs: int = 0
    graph: Any = None
    moves: int = 0  # of the device's scratch memory when it was recorded
    why_not: str | None = None  # why there will be no graph
    statistics: _core.RunStatistics | None = None
    drawn: int = 0  # noise slots used in the run that is put on the stream


class CudaDenoiser:
    """As `denoise.Denoiser`, for engines on a CUDA device; not for several threads at once.

    Args:
        engines: by the sampler program's engine index; all of one shape bucket, on one device.

    Raises:
        EngineError: the compiled core has no CUDA kernels, or the engines do not fit each other.
    """

    def __init__(self, engines: Sequence[TensorRtEngine]) -> None:
        if not hasattr(_core, "cuda"):
            raise EngineError(
                "this sora_runtime was built without CUDA kernels; install it where nvcc is "
                "(SORA_CUDA=ON says what is wrong)"
            )
        first = engines[0]
        for other in engines[1:]:
            if (other.inputs, other.outputs, other.device) != (first.inputs, first.outputs, first.device):
                raise EngineError("the experts of the bundle take different inputs; rebuild it with the same shapes")
        self._engines, self._device = engines, first.device
        inputs, outputs = engines[0].inputs, engines[0].outputs
        self._input, self._output = inputs["hidden_states"], outputs["model_output"]
        self._timestep = inputs["timestep"]
        conditions = {name: spec for name, spec in inputs.items() if name not in VARYING}
        self._shared = {name: spec for name, spec in conditions.items() if name in SHARED_CONDITIONS}
        self._texts = {name: spec for name, spec in conditions.items() if name not in SHARED_CONDITIONS}
        self._prepared: dict[object, _Prepared] = {}
        self._evaluations, self._seconds = 0, 0.0
        self.observe: Callable[[int, Mapping[str, Array]], None] | None = None
        """Never called: what an engine on a device is given is not on the host."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[1, channels, frames, height, width]."""
        return self._input.shape

    def spent(self) -> tuple[int, float]:
        """Network calls of the run under way or else of the last one, and the device's seconds as far as it is."""
        return self._evaluations, self._seconds

    def how(self) -> str:
        """How the last clip was put on the stream."""
        last = next(reversed(self._prepared.values()), None)
        if last is None or last.graph is None:
            return f"call by call{'' if last is None or last.why_not is None else ': ' + last.why_not}"
        return "one graph"

    def run(
        self,
        program: SamplerProgram,
        embeddings: Embeddings,
        start: NDArray[np.float32],
        *,
        noise: _core.NoiseGenerator | None,
        on_step: Callable[[int], None] | None,
        cancel: _core.CancelToken | None,
    ) -> DenoiseResult:
        """As `Denoiser.run`; a clip that is one graph reports its rows when all are done, and is not stopped between.

        Raises:
            EngineError: an engine or the device failed, or the latents diverged.
            CancelledError: stopped through `cancel`.
        """
        with self._device.lock:
            self._device.enter()
            self._evaluations, self._seconds = 0, 0.0
            prepared = self._of(program)
            self._stage(prepared, program, embeddings, start, noise)
            if cancel is not None and cancel.cancelled:
                raise Cancelled("cancelled before the first of the denoising rows")
            self._record(prepared)
            try:
                statistics = self._launch(prepared, on_step, cancel)
            finally:
                self._device.wait()  # whoever comes next, an exception of `on_step` included, finds the stream idle
        prepared.runs += 1
        latents: NDArray[np.float32] = prepared.result.array.copy()
        check_finite(latents)
        return DenoiseResult(latents, statistics, self._seconds, timed_by_row=False)

    def _record(self, prepared: _Prepared) -> None:
        """From the second clip on, when engines have warmed up; what cannot be recorded is put call by call."""
        if prepared.moves != self._device.moves:
            prepared.graph = None
        if prepared.graph is not None or prepared.runs == 0 or prepared.why_not is not None:
            return
        prepared.why_not = self._why_no_graph(prepared)
        if prepared.why_not is None:
            prepared.moves = self._device.moves
            try:
                prepared.graph = self._device.record(lambda: self._put(prepared, None, None))
            except (EngineError, RuntimeError) as error:  # RuntimeError: a kernel that was refused
                prepared.why_not = str(error)
        if prepared.why_not is not None:
            _LOG.info("clips of this program are not recorded as a graph: %s", prepared.why_not)

    def _launch(
        self, prepared: _Prepared, on_step: Callable[[int], None] | None, cancel: _core.CancelToken | None
    ) -> _core.RunStatistics:
        first = self._device.mark()
        if prepared.graph is None:
            statistics = self._put(prepared, self._paced(on_step), cancel)
        else:
            assert prepared.statistics is not None
            prepared.graph.launch()
            statistics = prepared.statistics
        last = self._device.mark()
        self._device.wait()
        self._evaluations, self._seconds = statistics.evaluations, self._device.seconds(first, last)
        if prepared.graph is not None and on_step is not None:
            on_step(prepared.rows)
        return statistics

    def _paced(self, on_step: Callable[[int], None] | None) -> Callable[[int], None]:
        """Reports a row when the one before it has passed, so that the host is never more than two rows ahead."""
        marks: list[Any] = [self._device.mark()]

        def report(done: int) -> None:
            marks.append(self._device.mark())
            if len(marks) > _ROWS_AHEAD:
                passed = marks[-_ROWS_AHEAD]
                passed.sync()
                self._seconds = self._device.seconds(marks[0], passed)
            if on_step is not None:
                on_step(done)

        return report

    def _why_no_graph(self, prepared: _Prepared) -> str | None:
        if prepared.statistics is not None and len(prepared.statistics.norms):
            return "step reuse decides by what is measured"
        stream = int(self._device.stream.handle)
        for context in prepared.used:
            if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(stream):
                return "an engine cannot be recorded"
        return None

    def _put(
        self, prepared: _Prepared, on_step: Callable[[int], None] | None, cancel: _core.CancelToken | None
    ) -> _core.RunStatistics:
        """Everything of a clip, in order; nothing here waits, takes memory or looks at a value."""
        device, layout = self._device, prepared.layout
        stride = stride_of(self._timestep)
        times = int(prepared.arena.handle) + layout.pieces["timesteps"].offset
        prepared.drawn = 0

        def evaluate(row: int, engine: int, _timestep: float, unconditional: bool) -> None:
            context = prepared.contexts[engine][unconditional]
            if context not in prepared.used:
                prepared.used.append(context)
            context.set_tensor_address("timestep", times + row * stride)
            self._engines[engine].enqueue(context)
            self._evaluations += 1

        def draw(address: int, n: int) -> None:
            slot = layout.pieces[f"noise {prepared.drawn}"]
            prepared.drawn += 1
            offset = address - int(prepared.arena.handle)
            device.copy(prepared.arena, slot.offset, prepared.arena, offset, n * _FLOAT.itemsize)

        device.copy(prepared.staged.buffer, 0, prepared.arena, 0, prepared.copied)
        prepared.statistics = prepared.sampler.run(evaluate, noise=draw, on_step=on_step, cancel=cancel)
        latents = layout.pieces["latents"]
        device.copy(prepared.arena, latents.offset, prepared.result.buffer, 0, latents.size)
        return prepared.statistics

    def _stage(
        self,
        prepared: _Prepared,
        program: SamplerProgram,
        embeddings: Embeddings,
        start: NDArray[np.float32],
        noise: _core.NoiseGenerator | None,
    ) -> None:
        """Writes what this clip brings into the memory that is copied."""
        staged, pieces = prepared.staged.array, prepared.layout.pieces
        np.multiply(start, np.float32(program.initial_scale), out=pieces["latents"].of(staged))
        fill({name: pieces[name].of(staged) for name in self._shared}, embeddings.shared)
        branches = [embeddings.conditional, embeddings.unconditional]
        for branch, conditions in enumerate(branches):
            if conditions is not None:
                fill({name: pieces[f"{name} {branch}"].of(staged) for name in self._texts}, conditions)
        times = pieces["timesteps"].of(staged)
        count = int(np.prod(self._timestep.shape)) * self._timestep.dtype.itemsize
        for row, timestep in zip(times, program.rows["timestep"], strict=True):
            row[:count].view(self._timestep.dtype)[:] = timestep
        sampler = self._sampler(prepared.layout, prepared.arena, program)
        if prepared.graph is None:
            prepared.sampler = sampler
        tables = np.frombuffer(sampler.tables, np.uint8)
        offset = pieces["workspace"].offset
        staged[offset : offset + len(tables)] = tables
        for slot in range(noise_rows(program.rows)):
            assert noise is not None
            pieces[f"noise {slot}"].of(staged)[...] = noise.normal(self._input.shape)

    def _of(self, program: SamplerProgram) -> _Prepared:
        """What the program's structure needs; the structures used longest ago give their memory back."""
        key = structure_of(program)
        prepared = self._prepared.pop(key, None)
        if prepared is None:
            while len(self._prepared) >= _STRUCTURES:
                oldest = self._prepared.pop(next(iter(self._prepared)))
                oldest.arena.close(self._device.stream)
            prepared = self._prepare(program)
        self._prepared[key] = prepared
        return prepared

    def _prepare(self, program: SamplerProgram) -> _Prepared:
        device, rows = self._device, program.rows
        layout = self._layout(program)
        arena = device.allocate(layout.end)
        sampler = self._sampler(layout, arena, program)
        copied = layout.pieces["workspace"].offset + len(sampler.tables)
        return _Prepared(
            layout,
            copied,
            arena,
            device.pinned(TensorSpec((copied,), np.dtype(np.uint8))),
            device.pinned(TensorSpec(self._input.shape, _FLOAT)),
            sampler,
            [list(self._contexts(engine, layout, arena)) for engine in self._engines],
            len(rows),
        )

    def _layout(self, program: SamplerProgram) -> ClipMemory:
        """First what is copied for each clip, up to the tables at the head of the workspace; then the rest."""
        rows, layout = program.rows, ClipMemory()
        layout.place("latents", TensorSpec(self._input.shape, _FLOAT))
        for name, spec in self._shared.items():
            layout.place(name, spec)
        for branch in range(2):
            for name, spec in self._texts.items():
                layout.place(f"{name} {branch}", spec)
        layout.place("timesteps", TensorSpec((len(rows), stride_of(self._timestep)), np.dtype(np.uint8)))
        for slot in range(noise_rows(rows)):
            layout.place(f"noise {slot}", TensorSpec(self._input.shape, _FLOAT))
        needed = _core.cuda.workspace_bytes(rows, n=count_of(self._input), **rules_of(program))
        layout.place("workspace", TensorSpec((needed,), np.dtype(np.uint8)))
        for branch in range(2):
            layout.place(f"output {branch}", self._output)
        if self._input.dtype != _FLOAT or np.any(rows["input_scale"] != 1.0):
            layout.place("input", self._input)
        return layout

    def _contexts(self, engine: TensorRtEngine, layout: ClipMemory, arena: Any) -> Iterator[Any]:
        """Of both branches, every tensor but the timestep bound."""
        for branch in range(2):
            names = {"hidden_states": "input" if "input" in layout.pieces else "latents"}
            names |= {name: name for name in self._shared} | {name: f"{name} {branch}" for name in self._texts}
            names["model_output"] = f"output {branch}"
            yield engine.context({name: int(arena.handle) + layout.pieces[at].offset for name, at in names.items()})

    def _sampler(self, layout: ClipMemory, arena: Any, program: SamplerProgram) -> Any:
        at = {name: int(arena.handle) + piece.offset for name, piece in layout.pieces.items()}
        buffers = _core.cuda.Buffers(
            n=count_of(self._input),
            latents=at["latents"],
            conditional=at["output 0"],
            unconditional=at["output 1"],
            model_input=at.get("input", 0),
            input_dtype=self._input.dtype.name,
            output_dtype=self._output.dtype.name,
        )
        return _core.cuda.Sampler(
            program.rows,
            buffers,
            workspace=at["workspace"],
            workspace_bytes=layout.pieces["workspace"].size,
            stream=int(self._device.stream.handle),
            **rules_of(program),
        )

    def close(self) -> None:
        """Give back the engines and the memory."""
        with self._device.lock:
            self._close()

    def _close(self) -> None:
        self._device.enter()
        self._device.wait()
        for prepared in self._prepared.values():
            prepared.arena.close(self._device.stream)
        self._prepared.clear()
        for engine in self._engines:
            engine.close()
