"""Engines whose tensors lie in a CUDA device's memory, and how such an engine serves arrays on the host."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..arena import ALIGNMENT
from ..errors import EngineError
from .cuda import CudaDevice, PinnedArray
from .engine import Array, Engine, TensorSpec, check_arrays


@dataclass(frozen=True)
class Piece:
    """A tensor in a device's memory."""

    offset: int
    spec: TensorSpec

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.spec.shape)) * self.spec.dtype.itemsize

    def of(self, staged: NDArray[np.uint8]) -> Array:
        """Its twin in memory of the host that is laid out alike."""
        return staged[self.offset : self.offset + self.size].view(self.spec.dtype).reshape(self.spec.shape)

    def fill(self, staged: NDArray[np.uint8], content: bytes) -> None:
        """Write the first bytes of that twin."""
        staged[self.offset : self.offset + len(content)] = np.frombuffer(content, np.uint8)


class DeviceMemory:
    """Tensors one after the other in one piece of a device's memory, each at an address that engines take."""

    def __init__(self) -> None:
        self.end = 0
        self.pieces: dict[str, Piece] = {}

    def place(self, name: str, spec: TensorSpec) -> Piece:
        """Put a tensor behind the others."""
        piece = self.pieces[name] = Piece(self.end, spec)
        self.end += -(-max(piece.size, 1) // ALIGNMENT) * ALIGNMENT
        return piece

    def addresses(self, start: int) -> dict[str, int]:
        """Of every tensor, if the first lies at `start`."""
        return {name: start + piece.offset for name, piece in self.pieces.items()}


class DeviceEngine(Engine, Protocol):
    """An engine that is put on a device's stream, on tensors at addresses there."""

    @property
    def device(self) -> CudaDevice:
        """Where it runs."""

    @property
    def scratch_bytes(self) -> int:
        """Memory that one evaluation needs beside its tensors; what is there before and after means nothing."""

    def context(self) -> Any:
        """Something to evaluate with; raises `EngineError` where the device's memory is used up."""

    def place(self, context: Any, addresses: Mapping[str, int]) -> None:
        """Say where tensors of a context lie, in multiples of 256 bytes; raises `EngineError` where one cannot."""

    @property
    def loaded(self) -> bool:
        """Whether its weights are on the device."""

    def ready(self) -> None:
        """Have its weights on the device, those of others going where memory is short; raises `EngineError`."""

    def ahead(self) -> None:
        """Bring its weights if there is memory for them beside all others, while the device is at something else."""

    def enqueue(self, context: Any, scratch: int) -> None:
        """Put one evaluation on the stream, with `scratch_bytes` of memory at that address; raises `EngineError`.

        Where its weights are not on the device they are brought first.
        """

    def recordable(self, context: Any) -> bool:
        """Whether an evaluation may be part of a CUDA graph; asked of a context that has run."""


def make_room(device: CudaDevice, tensors: int, *engines: DeviceEngine) -> Any:
    """The room for a stage whose tensors take so many bytes, and the weights of the engine that runs first.

    The caller has the device's turn. Weights of all its engines are brought if they fit. A room that is larger than
    this stage needs gives way where it takes the memory of the weights.
    """
    size = tensors + max(engine.scratch_bytes for engine in engines)
    room = device.room(size)
    try:
        for engine in reversed(engines):
            engine.ready()
    except EngineError:
        if room.size <= size:
            raise
        device.wait()
        device.leave()
        device.trim()
        room = device.room(size)
        for engine in reversed(engines):
            engine.ready()
    return room


@dataclass
class _Served:
    """What serves one binding at a time: a context, and a twin on the host of everything it reads and writes."""

    context: Any
    staged: PinnedArray
    moves: int = -1  # of the device's room when the context's tensors were placed


class HostServer:
    """What bindings of one engine share: where its tensors lie in the room, and contexts that nobody is tied to."""

    def __init__(self, engine: DeviceEngine, name: str) -> None:
        self.engine, self.name = engine, name
        self.memory = DeviceMemory()
        for tensor, spec in {**engine.inputs, **engine.outputs}.items():
            self.memory.place(tensor, spec)
        last = list(engine.inputs)[-1]
        self.brought = self.memory.pieces[last].offset + self.memory.pieces[last].size
        self._idle: list[_Served] = []

    def bind(self, arrays: Mapping[str, Array]) -> HostBinding:
        """Tie every input and output to a caller-owned array on the host; see `Engine.bind`."""
        problem = check_arrays(arrays, {**self.engine.inputs, **self.engine.outputs})
        if problem is not None:
            raise EngineError(f"'{self.name}' cannot be bound: {problem}")
        device = self.engine.device
        with device.alone():
            if self._idle:
                return HostBinding(self, self._idle.pop(), arrays)
            staged = device.pinned(TensorSpec((self.memory.end,), np.dtype(np.uint8)))
            return HostBinding(self, _Served(self.engine.context(), staged), arrays)

    def give_back(self, served: _Served) -> None:
        """Let the next binding have it."""
        self._idle.append(served)

    def close(self) -> None:
        """Drop what nobody is tied to."""
        self._idle.clear()


class HostBinding:
    """An engine on a device tied to arrays on the host: one copy brings the inputs, one takes the outputs away."""

    def __init__(self, server: HostServer, own: _Served, arrays: Mapping[str, Array]) -> None:
        self._server, self._own, self._arrays = server, own, dict(arrays)
        # A run has ended when it returns, so whoever binds next may have the context.
        weakref.finalize(self, server.give_back, own)

    def run(self) -> None:
        """Evaluate once, and return when the outputs are in the caller's arrays."""
        engine, memory, own = self._server.engine, self._server.memory, self._own
        device = engine.device
        with device.turn():
            room = make_room(device, memory.end, engine)
            if own.moves != device.moves:
                engine.place(own.context, memory.addresses(int(room.handle)))
                own.moves = device.moves
            staged, brought = own.staged.array, self._server.brought
            for name in engine.inputs:
                np.copyto(memory.pieces[name].of(staged), self._arrays[name])
            first = min(memory.pieces[name].offset for name in engine.outputs)
            try:
                device.copy(own.staged.buffer, 0, room, 0, brought)
                engine.enqueue(own.context, int(room.handle) + memory.end)
                device.copy(room, first, own.staged.buffer, first, memory.end - first)
            finally:
                device.wait()
            for name in engine.outputs:
                np.copyto(self._arrays[name], memory.pieces[name].of(staged))
