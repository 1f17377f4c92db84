"""Weights of networks on a device that may not hold all of them: brought when needed, taken off when others need room.

Wan 2.2 has two transformers and a text encoder of 11 GB, and a clip never needs two of them at the same moment.
Whatever cannot get memory asks for the weights that were used longest ago; they are brought again when their network's
turn comes, the next expert's while the one before still runs if both fit.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..arena import ALIGNMENT
from ..errors import EngineError
from .cuda import CudaDevice
from .engine import TensorSpec

_LOG = logging.getLogger(__name__)
_STAGE = 1 << 25  # bytes of the host's memory that copies go through, twice


class Weights(Protocol):
    """All weights of a network, on the device or not."""

    @property
    def name(self) -> str:
        """Of the network, for messages."""

    @property
    def loaded(self) -> bool:
        """Whether they are there, or will be for whatever follows on the device's stream."""

    def load(self) -> bool:
        """Put the copy on the device's stream for copies, and let its other stream wait; False without the memory."""

    def unload(self) -> None:
        """Give their memory back; no work that reads them is under way."""


class WeightTurns:
    """Which weights lie on a device: those that were used last, as many as fit. Callers hold the device's lock.

    Args:
        device: whose memory it is.
    """

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._order: list[weakref.ref[Weights]] = []  # of use, the last one at the end
        self._failed: tuple[int, int] | None = None  # which did not fit ahead, and when: nothing has gone since

    def need(self, weights: Weights) -> None:
        """Have weights on the device; others go where the memory is short.

        Raises:
            EngineError: they do not fit with nothing else there.
        """
        self._order = [*self._others(weights), weakref.ref(weights)]
        if not weights.loaded and self._device.recording:
            raise EngineError(f"the weights of '{weights.name}' left the device before a clip was recorded")
        while not weights.loaded and not weights.load():
            if not self.give(weights):
                raise EngineError(
                    f"the weights of '{weights.name}' cannot be brought to {self._device.name}: its memory is too "
                    "small, or the plan is damaged; use a lower precision, or build with `--weights streamed`"
                )

    def ahead(self, weights: Weights) -> None:
        """Bring weights that will be needed soon if they fit beside those that were used last."""
        now = self._order[-1]() if self._order else None
        if weights.loaded or self._device.recording or self._failed == (id(weights), self._device.unloads):
            return
        while not weights.load():
            if not self.give(weights, now):
                self._failed = id(weights), self._device.unloads
                return
        self._order = [weakref.ref(weights), *self._others(weights)]

    def _others(self, weights: Weights) -> list[weakref.ref[Weights]]:
        return [each for each in self._order if each() not in (None, weights)]

    def give(self, *besides: Weights | None) -> bool:
        """Take the weights that were used longest ago off the device; False if there are none but `besides`."""
        for each in self._order:
            weights = each()
            if weights is not None and weights.loaded and weights not in besides:
                self._device.wait()
                weights.unload()
                if weights.loaded:  # the library could not
                    continue
                self._device.wait()
                self._device.trim()
                self._device.unloads += 1
                return True
        return False


_turns: weakref.WeakKeyDictionary[CudaDevice, WeightTurns] = weakref.WeakKeyDictionary()


def weight_turns(device: CudaDevice) -> WeightTurns:
    """The device's; whoever gets no memory there asks it to give some."""
    if device not in _turns:
        _turns[device] = turns = WeightTurns(device)
        device.givers.append(turns.give)
    return _turns[device]


class PlanWeights:
    """Weights inside a plan, of an engine that was deserialised without them (TensorRT-RTX can).

    Args:
        name: of the network.
        engine: the library's.
        plan: what it was deserialised from.
        device: where it runs.
        library: the module `tensorrt_rtx`.
    """

    def __init__(self, name: str, engine: Any, plan: memoryview, *, device: CudaDevice, library: Any) -> None:
        self.name, self._engine, self._plan, self._device, self._library = name, engine, plan, device, library

    @property
    def loaded(self) -> bool:
        """See `Weights`."""
        return bool(self._engine.weights_loaded)

    def load(self) -> bool:
        """See `Weights`."""
        device = self._device
        try:
            if not self._engine.load_weights_async(_reader(self._library, self._plan), int(device.copies.handle)):
                return False
        except Exception as error:  # of no class that is known
            _LOG.info("the weights of '%s' were not brought: %s", self.name, error)
            return False
        device.after(device.copied())
        return True

    def unload(self) -> None:
        """See `Weights`."""
        self._engine.unload_weights()


def _reader(library: Any, plan: memoryview) -> Any:
    """The library's reader of a plan that lies in memory."""

    class Reader(library.IStreamReaderV2):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IStreamReaderV2.__init__(self)
            self._at = 0

        def read(self, num_bytes: int, stream: int) -> bytes:
            part = bytes(plan[self._at : self._at + min(num_bytes, 1 << 28)])
            self._at += len(part)
            return part

        def seek(self, offset: int, where: Any) -> bool:
            if where == library.SeekPosition.END:  # the library counts backward from there
                at = len(plan) - abs(offset)
            else:
                at = offset + (self._at if where == library.SeekPosition.CUR else 0)
            if not 0 <= at <= len(plan):
                return False
            self._at = at
            return True

    return Reader()


@dataclass(frozen=True)
class WeightPlace:
    """A weight that an engine takes as an input, in a file."""

    name: str
    file: Path
    offset: int
    length: int


class SharedWeights:
    """Weights that engines take as inputs: one copy on the device for all engines of a checkpoint's network.

    Args:
        name: of the network.
        places: of every weight.
        device: where they go.
    """

    def __init__(self, name: str, places: Sequence[WeightPlace], device: CudaDevice) -> None:
        self.name, self._places, self._device = name, places, device
        self.names = {place.name for place in places}
        self.generation = 0
        """How often they were brought; each time they may lie elsewhere."""
        sizes = [-(-max(place.length, 1) // ALIGNMENT) * ALIGNMENT for place in places]
        self._starts = [0, *itertools.accumulate(sizes)]
        self._buffer: Any = None

    @property
    def loaded(self) -> bool:
        """See `Weights`."""
        return self._buffer is not None

    def addresses(self) -> Mapping[str, int]:
        """Of every weight; they are loaded."""
        start = int(self._buffer.handle)
        return {place.name: start + at for place, at in zip(self._places, self._starts, strict=False)}

    def load(self) -> bool:
        """See `Weights`; the host writes a part while the one before it is copied."""
        device, size = self._device, self._starts[-1]
        buffer = device.lend(size)
        if buffer is None:
            return False
        stages = [device.pinned(TensorSpec((min(_STAGE, size),), np.dtype(np.uint8))) for _ in range(2)]
        files = {file: np.memmap(file, np.uint8, "r") for file in {place.file for place in self._places}}
        left: list[Any] = []
        for turn, begin in enumerate(range(0, size, _STAGE)):
            stage, end = stages[turn % 2], min(begin + _STAGE, size)
            if turn >= 2:
                device.wait_for(left[turn - 2])
            self._write(stage.array, begin, end, files)
            device.copy(stage.buffer, 0, buffer, begin, end - begin, stream=device.copies)
            left.append(device.copied())
        device.after(left[-1])
        device.wait_for(left[-1])
        for stage in stages:
            stage.close()
        self._buffer = buffer
        self.generation += 1
        return True

    def _write(self, part: NDArray[np.uint8], begin: int, end: int, files: Mapping[Path, NDArray[np.uint8]]) -> None:
        """The bytes from `begin` to `end` of all weights as they lie on the device."""
        for place, start in zip(self._places, self._starts, strict=False):
            first, last = max(start, begin), min(start + place.length, end)
            if first < last:
                read = place.offset - start
                part[first - begin : last - begin] = files[place.file][first + read : last + read]

    def unload(self) -> None:
        """See `Weights`."""
        self._buffer.close(self._device.copies)
        self._buffer = None

    def __del__(self) -> None:
        """When the last engine that reads them has gone, so does the copy."""
        if self._buffer is not None:
            self.unload()


_shared: weakref.WeakKeyDictionary[CudaDevice, weakref.WeakValueDictionary[tuple[WeightPlace, ...], SharedWeights]]
_shared = weakref.WeakKeyDictionary()


def shared_weights(name: str, places: Sequence[WeightPlace], device: CudaDevice) -> SharedWeights:
    """The device's copy of these weights, which whoever reads them shares; not loaded unless someone has."""
    known = _shared.setdefault(device, weakref.WeakValueDictionary())
    key = tuple(places)
    found = known.get(key)
    if found is None:
        found = known[key] = SharedWeights(name, places, device)
    return found
