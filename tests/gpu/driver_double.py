"""A stand-in for `cuda.bindings.driver`: recordings, graphs and copies of boxes."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu.doubles import Gpu, Operation


class Driver:
    """What `cuda.bindings.driver` is to the code under test; every call gives an error code first."""

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED=2)
    CUmemorytype = SimpleNamespace(CU_MEMORYTYPE_DEVICE=2)
    CUDA_MEMCPY3D = SimpleNamespace

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._graphs: list[list[Operation]] = []
        self.destroyed = 0

    def cuStreamBeginCapture(self, hStream: int, mode: int) -> tuple[int]:  # noqa: N802, N803
        self._gpu.insist_no_recording("a second recording")
        self._gpu.streams[hStream].recording = []
        return (0,)

    def cuStreamEndCapture(self, hStream: int) -> tuple[int, Any]:  # noqa: N802, N803
        stream = self._gpu.streams[hStream]
        if stream.recording is None:
            raise AssertionError("a recording that never began was ended")
        graph, stream.recording = stream.recording, None
        return (0, graph)

    def cuGraphInstantiate(self, hGraph: Any, flags: int) -> tuple[int, Any]:  # noqa: N802, N803
        self._graphs.append(hGraph)
        return (0, len(self._graphs) - 1)

    def cuGraphDestroy(self, hGraph: Any) -> tuple[int]:  # noqa: N802, N803
        return (0,)

    def cuGraphExecDestroy(self, hGraphExec: int) -> tuple[int]:  # noqa: N802, N803
        self.destroyed += 1
        return (0,)

    def cuMemcpy3DAsync(self, pCopy: Any, hStream: int) -> tuple[int]:  # noqa: N802, N803
        assert pCopy.srcMemoryType == pCopy.dstMemoryType == self.CUmemorytype.CU_MEMORYTYPE_DEVICE
        slices, rows, size = pCopy.Depth, pCopy.Height, pCopy.WidthInBytes

        def lines(start: int, height: int, pitch: int) -> list[int]:
            if size > pitch or rows > height:
                raise AssertionError("a box that is wider or higher than what it is copied from or to")
            return [start + (each * height + row) * pitch for each in range(slices) for row in range(rows)]

        pairs = list(
            zip(
                lines(pCopy.srcDevice, pCopy.srcHeight, pCopy.srcPitch),
                lines(pCopy.dstDevice, pCopy.dstHeight, pCopy.dstPitch),
                strict=True,
            )
        )

        def run() -> None:
            for source, target in pairs:
                ctypes.memmove(target, source, size)

        reads, writes = ([(address, size) for address in side] for side in zip(*pairs, strict=True))
        self._gpu.put(int(hStream), "copy a box", run, reads, writes)
        return (0,)

    def cuDeviceGet(self, ordinal: int) -> tuple[int, int]:  # noqa: N802
        return (0, ordinal)

    def cuDeviceGetMemPool(self, dev: int) -> tuple[int, str]:  # noqa: N802
        return (0, "pool")

    def cuMemPoolTrimTo(self, pool: str, minBytesToKeep: int) -> tuple[int]:  # noqa: N802, N803
        self._gpu.insist_no_recording("a trim")
        assert (pool, minBytesToKeep) == ("pool", 0)
        return (0,)

    def cuGraphLaunch(self, hGraphExec: int, hStream: int) -> tuple[int]:  # noqa: N802, N803
        stream = self._gpu.streams[hStream]
        self._gpu.log.append("launch graph")
        for each in self._graphs[hGraphExec]:
            # Memory that was given back since is seen here, as `put` looks for it.
            stream.put(replace(each, what=f"replay {each.what}", seen=[]))
        return (0,)
