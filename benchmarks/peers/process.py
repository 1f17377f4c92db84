"""The parent's end of a peer's process: asks, waits, and turns a dead process into a sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self

from benchmarks.peers.jobs import Job, Refused

ROOT = Path(__file__).parent.parent.parent
PAUSE = 0.05  # seconds in which the threads of the peer before stop spinning


class Process:
    """A peer's process.

    Args:
        peer: a name of `registry.PEERS`.
        job: what it is to load.

    Attributes:
        started: on the monotonic clock, before the process was.
    """

    def __init__(self, peer: str, job: Job) -> None:
        self.peer = peer
        self.job = job
        Path(job.work).mkdir(parents=True, exist_ok=True)
        self._log = job.file(f"{peer}.log").open("ab")
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.worker", peer],
            cwd=ROOT,
            env=environment(job),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        """What it answers; raises `Refused` with its sentence."""
        self.send(do, **words)
        return self.hear()

    def send(self, do: str, **words: Any) -> None:
        """Ask without waiting for the answer."""
        with suppress(BrokenPipeError):  # a dead process is found out in `hear`
            stdin = _open(self._process.stdin)
            stdin.write(json.dumps({"do": do, **words}) + "\n")
            stdin.flush()

    def hear(self) -> dict[str, Any]:
        """The next answer; raises `Refused`."""
        line = _open(self._process.stdout).readline()
        if not line:
            code = self._process.wait()
            died = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            raise Refused(f"its process ended {died}{_out_of_memory(code)}")
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise Refused(answer["refused"])
        return answer

    def load(self) -> float:
        """Seconds that loading took."""
        return float(self.ask("load", job=asdict(self.job))["seconds"])

    def close(self) -> None:
        """End the process."""
        with suppress(BrokenPipeError):
            _open(self._process.stdin).close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _open(self._process.stdout).close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def environment(job: Job) -> dict[str, str]:
    """The parent's, with the same number of threads for every library and torch's cache of kernels kept apart."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"), str(job.threads))
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **threads, **offline, "TORCHINDUCTOR_CACHE_DIR": str(job.file("inductor"))}


def prepare(peer: str, job: Job) -> float:
    """Seconds that a peer's work ahead of time took, in a process that is gone when this returns."""
    with Process(peer, job) as process:
        return float(process.ask("prepare", job=asdict(job))["seconds"])


def _open(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _out_of_memory(code: int) -> str:
    return ", as when memory runs out" if code == -signal.SIGKILL else ""
