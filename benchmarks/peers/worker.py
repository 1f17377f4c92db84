"""The process of one peer: reads a line of JSON, does what it says, answers with a line of JSON.

    python -m benchmarks.peers.worker PEER

Arrays go through files of the job's folder, written after the clock has stopped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


class Worker:
    """Does what the lines say with one adapter."""

    def __init__(self, peer: str) -> None:
        from benchmarks.peers.registry import adapter_of

        self._adapter = adapter_of(peer)
        self._answers = 0
        self._job: Any = None

    def prepare(self, job: dict[str, Any]) -> dict[str, Any]:
        """Ahead of time; see `Adapter`."""
        return self._timed(lambda: self._adapter.prepare(self._take(job)))

    def load(self, job: dict[str, Any]) -> dict[str, Any]:
        """Load."""
        return self._timed(lambda: self._adapter.load(self._take(job)))

    def run(self, ask: dict[str, Any]) -> dict[str, Any]:
        """A clip; `first_frame_at` and `done_at` are on the machine's monotonic clock, which processes share."""
        from benchmarks.peers.jobs import Ask

        moments: list[float] = []
        start = time.perf_counter()
        drawn = self._adapter.run(Ask(**ask), lambda: moments.append(time.perf_counter()))
        done = time.perf_counter()
        return {
            "seconds": done - start,
            "first_frame_at": moments[0],
            "done_at": done,
            "evaluations": drawn.evaluations,
            "frames": self._save(drawn.frames),
            "latents": self._save(drawn.latents),
        }

    def forward(self, keep: bool) -> dict[str, Any]:
        """An evaluation; its output is kept if asked for."""
        start = time.perf_counter()
        output = self._adapter.forward()
        seconds = time.perf_counter() - start
        return {"seconds": seconds} | ({"output": self._save(output)} if keep else {})

    def memory(self) -> dict[str, Any]:
        """VmHWM of this process."""
        from sora_runtime.machine import peak_host_memory_bytes

        return {"peak_bytes": peak_host_memory_bytes()}

    def _take(self, job: dict[str, Any]) -> Any:
        from benchmarks.peers.jobs import Job

        self._job = Job(**job)
        return self._job

    def _timed(self, work: Callable[[], None]) -> dict[str, Any]:
        start = time.perf_counter()
        work()
        return {"seconds": time.perf_counter() - start}

    def _save(self, array: Any) -> str:
        import numpy as np

        self._answers = (self._answers + 1) % 2  # a clip's two arrays; the next clip's replace them
        path = self._job.file(f"answer-{os.getpid()}-{self._answers}.npy")
        np.save(path, array)
        return str(path)


def sentence(error: BaseException) -> str:
    """What went wrong, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else "no reason given"
    return f"{type(error).__name__}: {said}"[:300]


def serve(peer: str) -> None:
    """Until stdin ends. What libraries print goes to stderr, so that stdout holds answers alone."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker: Worker | None = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            worker = worker or Worker(peer)
            answer = getattr(worker, message.pop("do"))(**message)
        except Exception as error:  # whatever a library raises is this peer's refusal, not the table's end
            import traceback

            traceback.print_exc()
            answer = {"refused": sentence(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
