"""The transformers of a bundle on a CUDA device: a trajectory on one stream, and from its second clip on one graph.

Everything that a clip brings (start latents, embeddings, timesteps, coefficients, noise) lies at the head of the
device's room and goes there in one copy; then every engine call and every step of the sampler follows on the stream
without a word from the host. What is put on the stream is the same for all clips of a program's structure, so it is
recorded once and launched as one CUDA graph: a new prompt, seed or guidance scale changes only what is copied. Where a
criterion of step reuse decides by what was measured, the host must look at every row; then each evaluation is a graph
of its own.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .arena import ALIGNMENT
from .clip_memory import FLOAT, Prepared, TransformerTensors, stride_of, structure_of
from .denoise import DenoiseResult, Embeddings, check_finite
from .engines.device_engine import DeviceEngine, make_room
from .engines.engine import Array, TensorSpec
from .errors import Cancelled, EngineError
from .sampling.program import SamplerProgram

_LOG = logging.getLogger(__name__)
_STRUCTURES = 3  # of programs, whose graphs are kept
_ROWS_AHEAD = 2
_DECIDES = "step reuse decides by what is measured"
_TURNS = "the weights of its networks take turns on the device"


class CudaDenoiser:
    """As `denoise.Denoiser`, for engines on a CUDA device; not for several threads at once.

    Args:
        engines: by the sampler program's engine index; all of one shape bucket, on one device.

    Raises:
        EngineError: the compiled core has no CUDA kernels, or the engines do not fit each other.
    """

    def __init__(self, engines: Sequence[DeviceEngine]) -> None:
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
        self._tensors = TransformerTensors.of(first)
        self._prepared: dict[object, Prepared] = {}
        self._evaluations, self._seconds = 0, 0.0
        self.observe: Callable[[int, Mapping[str, Array]], None] | None = None
        """Never called: what an engine on a device is given is not on the host."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[1, channels, frames, height, width]."""
        return self._tensors.latents.shape

    def spent(self) -> tuple[int, float]:
        """Network calls of the run under way or else of the last one, and the device's seconds as far as it is."""
        return self._evaluations, self._seconds

    def how(self) -> str:
        """How the last clip was put on the stream."""
        last = next(reversed(self._prepared.values()), None)
        if last is not None and last.graph is not None:
            return "one graph"
        reason = None if last is None else last.why_not if last.together else _TURNS
        why = "" if reason is None else f": {reason}"
        return f"{'a graph for each evaluation' if last is not None and last.evaluations else 'call by call'}{why}"

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
        with self._device.turn():
            self._evaluations, self._seconds = 0, 0.0
            prepared = self._of(program)
            self._settle(prepared)
            stream = int(self._device.stream.handle)
            sampler = self._tensors.sampler(prepared.layout, prepared.start, program, stream)
            if prepared.graph is None:
                prepared.sampler = sampler
            self._tensors.stage(prepared.layout, prepared.staged.array, program, embeddings, start, noise)
            prepared.layout.pieces["workspace"].fill(prepared.staged.array, sampler.tables)
            if cancel is not None and cancel.cancelled:
                raise Cancelled("cancelled before the first of the denoising rows")
            self._record(prepared)
            self._evaluations = 0  # a recording that failed has counted some
            try:
                statistics = self._launch(prepared, on_step, cancel)
            finally:
                self._device.wait()  # whoever comes next, an exception of `on_step` included, finds the stream idle
        prepared.warm = True
        latents: NDArray[np.float32] = prepared.result.array.copy()
        check_finite(latents)
        return DenoiseResult(latents, statistics, self._seconds, timed_by_row=False)

    def _settle(self, prepared: Prepared) -> None:
        """The room and the weights for this clip; where anything has moved, what was recorded is gone."""
        device, used = self._device, [self._engines[number] for number in dict.fromkeys(prepared.engines)]
        room = make_room(device, prepared.layout.end, used[0])
        prepared.together = all(engine.loaded for engine in used)
        if prepared.unloads != device.unloads:  # what brings weights back may have to warm up again
            prepared.unloads, prepared.warm, prepared.why_not = device.unloads, False, None
        elif prepared.moves == device.moves:
            return
        prepared.graph = None
        prepared.evaluations.clear()
        prepared.start, prepared.moves = int(room.handle), device.moves
        self._place(prepared)

    def _place(self, prepared: Prepared) -> None:
        for engine, branches in zip(self._engines, prepared.contexts, strict=True):
            for branch, context in enumerate(branches):
                engine.place(context, self._tensors.addresses(prepared.layout, prepared.start, branch))

    def _record(self, prepared: Prepared) -> None:
        """From the second clip on, when engines have warmed up; what cannot be recorded is put call by call."""
        if not prepared.warm or prepared.graph is not None or prepared.evaluations or not prepared.together:
            return
        if prepared.why_not not in (None, _DECIDES):
            return
        prepared.why_not = self._why_no_graph(prepared)
        try:
            if prepared.why_not is None:
                prepared.graph = self._device.record(lambda: self._put(prepared, None, None))
            elif prepared.why_not == _DECIDES:
                self._record_evaluations(prepared)
        except (EngineError, RuntimeError) as error:  # RuntimeError: a kernel that was refused
            prepared.evaluations.clear()
            prepared.why_not = str(error)
        if prepared.why_not is not None:
            _LOG.info("clips of this program are not recorded as a graph: %s", prepared.why_not)

    def _record_evaluations(self, prepared: Prepared) -> None:
        """A graph of each engine and branch."""
        for number, unconditional in prepared.used:
            engine, context = self._engines[number], prepared.contexts[number][unconditional]
            scratch = prepared.start + prepared.layout.end
            prepared.evaluations[number, unconditional] = self._device.record(
                lambda engine=engine, context=context, scratch=scratch: engine.enqueue(context, scratch)  # type: ignore[misc]
            )

    def _launch(
        self, prepared: Prepared, on_step: Callable[[int], None] | None, cancel: _core.CancelToken | None
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
            on_step(len(prepared.engines))
        return statistics

    def _paced(self, on_step: Callable[[int], None] | None) -> Callable[[int], None]:
        """Reports a row when the one before it has passed, so that the host is never more than two rows ahead."""
        marks: list[Any] = [self._device.mark()]

        def report(done: int) -> None:
            marks.append(self._device.mark())
            if len(marks) > _ROWS_AHEAD:
                passed = marks[-_ROWS_AHEAD]
                self._device.wait_for(passed)
                self._seconds = self._device.seconds(marks[0], passed)
            if on_step is not None:
                on_step(done)

        return report

    def _why_no_graph(self, prepared: Prepared) -> str | None:
        used = [(self._engines[number], prepared.contexts[number][branch]) for number, branch in prepared.used]
        if not all(engine.recordable(context) for engine, context in used):
            return "an engine cannot be recorded"
        if prepared.statistics is not None and len(prepared.statistics.norms):
            return _DECIDES
        return None

    def _put(
        self, prepared: Prepared, on_step: Callable[[int], None] | None, cancel: _core.CancelToken | None
    ) -> _core.RunStatistics:
        """Everything of a clip, in order; nothing here waits, takes memory or looks at a value."""
        device, pieces = self._device, prepared.layout.pieces
        room = device.room(prepared.layout.end)
        stride, times, now = stride_of(self._tensors.timestep), pieces["timesteps"].offset, pieces["timestep"]
        prepared.drawn, prepared.row = 0, -1

        def evaluate(row: int, number: int, _timestep: float, unconditional: bool) -> None:
            if row != prepared.row:
                if row > 0 and number == prepared.engines[row - 1]:  # a whole row is under way
                    self._next_ahead(prepared, row)
                device.copy(room, times + row * stride, room, now.offset, now.size)
                prepared.row = row
            key = number, unconditional
            if key not in prepared.used:
                prepared.used.append(key)
            if key in prepared.evaluations:
                prepared.evaluations[key].launch()
            else:
                context = prepared.contexts[number][unconditional]
                self._engines[number].enqueue(context, prepared.start + prepared.layout.end)
            self._evaluations += 1

        def draw(address: int, n: int) -> None:
            slot = pieces[f"noise {prepared.drawn}"]
            prepared.drawn += 1
            device.copy(room, slot.offset, room, address - prepared.start, n * FLOAT.itemsize)

        device.copy(prepared.staged.buffer, 0, room, 0, prepared.copied)
        prepared.statistics = prepared.sampler.run(evaluate, noise=draw, on_step=on_step, cancel=cancel)
        latents = pieces["latents"]
        device.copy(room, latents.offset, prepared.result.buffer, 0, latents.size)
        return prepared.statistics

    def _next_ahead(self, prepared: Prepared, row: int) -> None:
        """Bring the next expert's weights while this one runs, if they fit beside it."""
        number = prepared.engines[row]
        following = next((each for each in prepared.engines[row:] if each != number), None)
        if following is not None:
            self._engines[following].ahead()

    def _of(self, program: SamplerProgram) -> Prepared:
        """What the program's structure needs; the structures used longest ago are forgotten."""
        key = structure_of(program)
        prepared = self._prepared.pop(key, None)
        if prepared is None:
            while len(self._prepared) >= _STRUCTURES:
                self._prepared.pop(next(iter(self._prepared))).close()
            prepared = self._prepare(program)
        self._prepared[key] = prepared
        return prepared

    def _prepare(self, program: SamplerProgram) -> Prepared:
        device, layout = self._device, self._tensors.lay_out(program)
        # Only to learn how long its tables are; nothing is put on the stream, and no address is looked at.
        sampler = self._tensors.sampler(layout, ALIGNMENT, program, int(device.stream.handle))
        copied = layout.pieces["workspace"].offset + len(sampler.tables)
        return Prepared(
            layout,
            copied,
            device.pinned(TensorSpec((copied,), np.dtype(np.uint8))),
            device.pinned(TensorSpec(self.latent_shape, FLOAT)),
            [[engine.context() for _branch in range(2)] for engine in self._engines],
            program.rows["engine"].tolist(),
        )

    def close(self) -> None:
        """Give back the engines and the memory."""
        with self._device.alone():
            self._device.wait()
            for prepared in self._prepared.values():
                prepared.close()
            self._prepared.clear()
            self._device.leave()
            for engine in self._engines:
                engine.close()
