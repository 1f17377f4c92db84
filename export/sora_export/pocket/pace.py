"""Keeps a CPU training at the number of threads that is fastest just now, on a machine others use too.

With as many threads as cores, one busy neighbour makes every parallel region wait for the slowest thread;
fewer threads are then several times faster. The right number changes from minute to minute, so it is measured.
"""

from __future__ import annotations

import os
import time

import torch

_STEPS = 4  # measured at each candidate
_SETTLED_SECONDS = 25.0


class ThreadPace:
    """Call `tick` once a step; it tries half and all of the threads in turn and stays with the faster."""

    def __init__(self, most: int | None = None) -> None:
        most = most or os.cpu_count() or 1
        self.candidates = sorted({most, max(1, most // 2)})
        self.times: list[float] = []
        self.steps = 0
        self.mark = time.monotonic()
        torch.set_num_threads(self.candidates[0])

    def tick(self) -> None:
        """Count one step; switch threads when a measurement ends or the last choice has grown old."""
        now = time.monotonic()
        if len(self.candidates) == 1:
            return
        if len(self.times) == len(self.candidates):
            if now - self.mark > _SETTLED_SECONDS:
                self.times = []
                self._begin(self.candidates[0], now)
            return
        self.steps += 1
        if self.steps < _STEPS:
            return
        self.times.append(now - self.mark)
        if len(self.times) < len(self.candidates):
            self._begin(self.candidates[len(self.times)], now)
        else:
            self._begin(self.candidates[self.times.index(min(self.times))], now)

    def _begin(self, threads: int, now: float) -> None:
        torch.set_num_threads(threads)
        self.steps, self.mark = 0, now
