"""Repeats of one timing, with those left out that had to stand in line behind other programs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

GROUP = 1e-3  # seconds of a repeat; what is shorter runs several times
SLOWER = 1.15  # pace of a repeat, relative to the machine's own
TOLERANCE = 0.02  # share of its time that a repeat may have waited


class Load:
    """How much of the processors other programs take, from /proc/stat."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Busy time of all processors, all time of all processors, time of this process."""
        try:
            fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
            ticks = [float(value) / os.sysconf("SC_CLK_TCK") for value in fields]
        except (OSError, ValueError):
            return None
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks), time.process_time()

    def others(self) -> float | None:
        """Since the start; None where the system does not say."""
        now = self._now()
        if now is None or self._start is None:
            return None
        busy, whole, own = (after - before for after, before in zip(now, self._start, strict=True))
        return min(max((busy - own) / max(whole, 1e-9), 0.0), 1.0)


def waited() -> float:
    """Seconds that the threads of this process have been ready to run while other programs had the processors.

    From Linux's /proc/self/task/*/schedstat; 0 where there is none.
    """
    total = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError, ValueError, IndexError):  # a thread may end meanwhile
            total += int(file.read_text(encoding="ascii").split()[1])
    return total / 1e9


@dataclass
class Samples:
    """Repeats of one thing; those that stood in line behind another program are left out while better ones exist."""

    seconds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)  # share of each
    paces: list[float] = field(default_factory=list)  # of the machine meanwhile, see bench.pace

    def add(self, run: Callable[[], object]) -> None:
        """Runs for a millisecond, at least once, and notes the mean."""
        count, before, start = 0, waited(), time.perf_counter()
        while True:
            run()
            count, taken = count + 1, time.perf_counter() - start
            if taken > GROUP:
                break
        self.seconds.append(taken / count)
        self.waits.append((waited() - before) / taken)

    def settle(self, pace: float) -> None:
        """States the machine's pace during the repeats since the last call."""
        self.paces += [pace] * (len(self.seconds) - len(self.paces))

    def clean(self, pace: float | None = None) -> list[float]:
        """Seconds of the repeats that had the processors to themselves; those at about this pace, and at it."""
        chosen = []
        for index, (taken, share) in enumerate(zip(self.seconds, self.waits, strict=True)):
            slower = 1.0 if pace is None else self.paces[index] / pace
            if share <= TOLERANCE and slower <= SLOWER:
                chosen.append(taken / slower)
        return chosen

    def typical(self, pace: float | None = None, quantile: float = 0.5) -> float:
        """Median seconds on a quiet machine; of a busy one, the best there is.

        Args:
            pace: at which the seconds are stated; None takes them as they are.
            quantile: of the repeats, if not the median.
        """
        own = self.clean(pace)
        return float(np.quantile(own, quantile)) if own else min(self.seconds)
