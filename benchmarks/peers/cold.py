"""Cold starts: a new process for every clip, from before it is started to its first frame."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from benchmarks.peers.clips import GUIDANCE
from benchmarks.peers.jobs import Ask, Job, Refused
from benchmarks.peers.options import Options, Place, Say
from benchmarks.peers.process import Process, prepare
from benchmarks.peers.registry import PEERS

PROMPT = "a red circle moving left on a navy background"
CACHED = "ours-cached"


@dataclass
class Start:
    """A row as it fills."""

    name: str
    label: str
    peer: str
    job: Job
    refused: str | None = None
    first_frame_seconds: list[float] = field(default_factory=list)
    clip_seconds: list[float] = field(default_factory=list)
    load_seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)

    def once(self, steps: int, seed: int) -> None:
        """A new process makes a clip; both questions are asked at once, so that it never waits for this one."""
        with Process(self.peer, self.job) as process:
            process.send("load", job=asdict(self.job))
            process.send("run", ask=asdict(Ask(PROMPT, seed, steps, GUIDANCE)))
            loaded, answer = process.hear(), process.hear()
            self.load_seconds.append(round(loaded["seconds"], 5))
            self.first_frame_seconds.append(round(answer["first_frame_at"] - process.started, 5))
            self.clip_seconds.append(round(answer["done_at"] - process.started, 5))
            self.peak_bytes.append(process.ask("memory")["peak_bytes"])

    def guarded(self, work: Callable[[Start], None]) -> None:
        """Do it unless the peer has refused; a refusal is kept."""
        if self.refused is None:
            try:
                work(self)
            except Refused as error:
                self.refused = str(error)

    def record(self) -> dict[str, Any]:
        """The row."""
        row = {"name": self.name, "label": self.label, "ours": PEERS[self.peer].ours, "refused": self.refused}
        if self.refused is not None:
            return row
        return row | {
            "first_frame_seconds": self.first_frame_seconds,
            "clip_seconds": self.clip_seconds,
            "load_seconds": statistics.median(self.load_seconds),
            "peak_bytes": max(self.peak_bytes),
        }


def measure_cold(options: Options, place: Place, say: Say) -> dict[str, Any]:
    """Every peer once a round; one start before that brings its files into the page cache and fills disk caches."""
    starts = [Start(name, PEERS[name].label, name, place.job(name)) for name in options.peers if PEERS[name].clips]
    if "ours" in options.peers:
        job = place.job("ours", embedding_cache_dir=str(place.root / "embeddings"))
        starts.append(Start(CACHED, "this runtime, fp32, prompt in the cache on disk", "ours", job))
    for start in starts:
        say(f"preparing {start.label}")
        start.guarded(_prepare)
    for turn in range(options.cold_rounds):
        for start in _rotated(starts, turn):
            start.guarded(partial(Start.once, steps=options.cold_steps, seed=turn))
        say(f"{turn + 1} of {options.cold_rounds} rounds of cold starts")
    rows = [start.record() for start in starts]
    return {"rounds": options.cold_rounds, "steps": options.cold_steps, "prompt": PROMPT, "rows": rows}


def _prepare(start: Start) -> None:
    """What is made ahead of time, and one start whose times nobody keeps."""
    prepare(start.peer, start.job)
    Start(start.name, start.label, start.peer, start.job).once(2, 0)


def _rotated(starts: Sequence[Start], turn: int) -> list[Start]:
    first = turn % len(starts)
    return [*starts[first:], *starts[:first]]
