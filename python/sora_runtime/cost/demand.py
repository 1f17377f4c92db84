"""How clips are asked for: a rate with a daily peak, or the arrivals of a trace."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from sora_runtime.errors import InvalidRequest

MAX_TRACE_CLIPS = 10_000  # simulated of one trace; of a longer one, the busiest stretch
MAX_CLIPS_PER_ROW = 1_000_000
LEAST_PER_HOUR, MOST_PER_HOUR = 1e-3, 1e12

Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Demand:
    """Clips per hour on average over the month, and how unevenly they come.

    Args:
        clips_per_hour: the mean.
        peak_factor: rate of the busiest hour over the mean, at least 1; the fleet is sized for that hour.
        arrivals: seconds of a trace, ascending; None: Poisson arrivals.
        source: where the rate is from, for the table of assumptions.
        peak_source: where the peak factor is from.
    """

    clips_per_hour: float
    peak_factor: float = 1.0
    arrivals: Seconds | None = field(default=None, compare=False)
    source: str = "--requests-per-hour"
    peak_source: str = "assumed"

    def __post_init__(self) -> None:
        if not LEAST_PER_HOUR <= self.clips_per_hour <= MOST_PER_HOUR:
            raise InvalidRequest(
                f"requests per hour = {self.clips_per_hour:g} is not between {LEAST_PER_HOUR:g} and {MOST_PER_HOUR:g}; "
                "use one such as 100"
            )
        if not (math.isfinite(self.peak_factor) and 1 <= self.peak_factor <= 24):
            raise InvalidRequest(
                f"peak factor = {self.peak_factor:g} is not between 1 and 24 (busiest hour over mean hour); "
                "use one such as 2"
            )

    @property
    def peak_per_second(self) -> float:
        """Clips per second in the busiest hour; of a trace, its mean, as its peaks are played as they are."""
        return self.clips_per_hour * self.peak_factor / 3600

    def cell(self, cells: int, clips: int, seed: int) -> Seconds:
        """Arrivals at one of `cells` equal parts of the fleet: seconds, ascending."""
        if self.arrivals is None:
            gaps = np.random.default_rng([seed, 0]).exponential(cells / self.peak_per_second, clips)
            return np.cumsum(gaps)
        return busiest(self.arrivals[::cells], MAX_TRACE_CLIPS)

    def scaled(self, factor: int) -> Demand:
        """`factor` times as many clips; of a trace, new ones are spread evenly between those that are there."""
        if self.arrivals is None:
            return replace(self, clips_per_hour=self.clips_per_hour * factor)
        times, which = np.unique(self.arrivals, return_inverse=True)
        gaps = np.diff(times, append=times[-1])[which]  # to the next other time: a batch moves as one
        more = np.sort(np.concatenate([self.arrivals + gaps * part / factor for part in range(factor)]))
        return replace(self, clips_per_hour=self.clips_per_hour * factor, arrivals=more)


def busiest(arrivals: Seconds, clips: int) -> Seconds:
    """The `clips` consecutive arrivals that lie closest together."""
    if len(arrivals) <= clips:
        return arrivals
    start = int(np.argmin(arrivals[clips - 1 :] - arrivals[: len(arrivals) - clips + 1]))
    return arrivals[start : start + clips]


def crowd(arrivals: Seconds, window: float) -> float:
    """How many clips arrive within `window` seconds up to a clip's own arrival: the 95th percentile over clips."""
    before = np.searchsorted(arrivals, arrivals - window, side="left")
    together = np.searchsorted(arrivals, arrivals, side="right")
    return float(np.percentile(together - before, 95))


def hours_of_day(peak_factor: float) -> Seconds:
    """24 hourly rates with mean 1 and highest `peak_factor`: one smooth peak a day, exp(k cos), never below 0."""
    angles = 2 * math.pi * np.arange(24) / 24
    low, high = 0.0, 2000.0
    for _ in range(60):
        middle = (low + high) / 2
        shape = np.exp(middle * (np.cos(angles) - 1))
        low, high = (middle, high) if 1 / shape.mean() < peak_factor else (low, middle)
    shape = np.exp(low * (np.cos(angles) - 1))
    hours: Seconds = shape / shape.mean()
    return hours


def read_trace(path: Path) -> Demand:
    """Reads a trace: CSV with a header, a column `seconds` (or `arrival_seconds`) and, if wanted, `clips`.

    Rows need not be sorted; `clips` clips arrive together, 1 if the column is missing or blank.

    Raises:
        InvalidRequest: The file cannot be read, a row is malformed (its line is named), or there is no span of time.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            seconds, clips = _rows(file, path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidRequest(f"--trace {path} cannot be read ({reason}); give a CSV file of arrival seconds") from None
    if len(set(seconds)) < 2:
        raise InvalidRequest(f"--trace {path} holds {len(set(seconds))} different times; give two arrivals or more")
    order = np.argsort(seconds, kind="stable")
    arrivals = np.repeat(np.asarray(seconds)[order], np.asarray(clips)[order])
    arrivals = arrivals - arrivals[0]
    hours = float(arrivals[-1]) / 3600
    # n requests span n - 1 gaps: without the correction a short trace would be read as busier than it is.
    per_hour = len(arrivals) / hours * (len(seconds) - 1) / len(seconds)
    return Demand(per_hour, 1.0, arrivals, f"{path}: {len(arrivals)} clips in {hours:.4g} h")


def _rows(file: TextIO, path: Path) -> tuple[list[float], list[int]]:
    reader = csv.DictReader(file)
    names = {name.strip().lower(): name for name in reader.fieldnames or () if name}
    column = names.get("arrival_seconds") or names.get("seconds")
    if column is None:
        raise InvalidRequest(
            f"--trace {path} has no column arrival_seconds; name it so in line 1 (and, if wanted, a column clips)"
        )
    seconds, clips, total = [], [], 0
    for row in reader:
        if not any(value for value in row.values()):
            continue
        seconds.append(_second(row[column], path, reader.line_num))
        clips.append(_clips(row.get(names.get("clips", "")), path, reader.line_num))
        total += clips[-1]
        if total > 10 * MAX_CLIPS_PER_ROW:
            raise InvalidRequest(
                f"--trace {path}, line {reader.line_num}: more than {10 * MAX_CLIPS_PER_ROW:,} clips; give a part of it"
            )
    return seconds, clips


def _second(text: str | None, path: Path, line: int) -> float:
    try:
        second = float(text or "")
    except ValueError:
        second = math.nan
    if not math.isfinite(second) or second < 0:
        raise InvalidRequest(
            f"--trace {path}, line {line}: arrival {(text or '').strip()!r} is not a number of seconds; "
            "use one such as 12.5"
        )
    return second


def _clips(text: str | None, path: Path, line: int) -> int:
    if text is None or not text.strip():
        return 1
    if not text.strip().isdecimal() or len(text) > 20 or not 1 <= int(text) <= MAX_CLIPS_PER_ROW:
        raise InvalidRequest(
            f"--trace {path}, line {line}: clips {text.strip()!r} is not a whole number from 1 to {MAX_CLIPS_PER_ROW:,}"
        )
    return int(text)
