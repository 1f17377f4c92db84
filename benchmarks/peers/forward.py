"""One forward pass of a transformer of random weights: all peers in turns, or two at a time where it is big.

Big means that the processes of all peers together would not fit: then this runtime's int8, the smallest, stays, and
every other peer comes for alternating rounds with it and goes, so that each is paired with the same one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.jobs import Refused
from benchmarks.peers.models import TRANSFORMERS, make_checkpoint
from benchmarks.peers.options import Options, Place, Say
from benchmarks.peers.process import PAUSE, Process, prepare
from benchmarks.peers.registry import PEERS

ANCHOR, REFERENCE = "ours-int8", "diffusers"
BIG_BYTES = 4e9
"""Of float32 weights; above, peers do not live side by side."""
WEIGHTS_HELD = 2.2
"""How often a peer holds the weights at its peak: as mapped files and as packed for its kernels, and a little more."""


@dataclass
class Turn:
    """A row as it fills; `anchor_seconds` are the anchor's of the same rounds."""

    peer: str
    process: Process | None = None
    refused: str | None = None
    seconds: list[float] = field(default_factory=list)
    anchor_seconds: list[float] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    output: NDArray[np.float32] | None = None

    def begin(self, place: Place, model: str, needed: float) -> None:
        """Make ahead of time what it needs, load it, and warm up."""
        job = place.job(self.peer, model)
        try:
            _insist_on_memory(needed)
            self.figures["prepare_seconds"] = prepare(self.peer, job)
            self.process = Process(self.peer, job)
            self.figures["load_seconds"] = self.process.load()
            self.output = np.load(self.process.ask("forward", keep=True)["output"])
        except Refused as error:
            self.end(str(error))

    def forward(self) -> float | None:
        """Seconds of an evaluation; None from a peer that cannot."""
        if self.process is None:
            return None
        time.sleep(PAUSE)
        try:
            return float(self.process.ask("forward", keep=False)["seconds"])
        except Refused as error:
            self.end(str(error))
            return None

    def end(self, refused: str | None = None) -> None:
        """Note the peak of memory and let the process go."""
        self.refused = self.refused or refused
        if self.process is None:
            return
        if self.refused is None:
            self.figures["peak_bytes"] = self.process.ask("memory")["peak_bytes"]
        self.process.close()
        self.process = None

    def record(self, truth: NDArray[np.float32] | None) -> dict[str, Any]:
        """The row."""
        peer = PEERS[self.peer]
        row = {"name": self.peer, "label": peer.label, "ours": peer.ours, "refused": self.refused}
        if self.refused is not None or self.output is None:
            return row
        error = None if truth is None else float(np.linalg.norm(self.output - truth) / np.linalg.norm(truth))
        times = {"seconds": self.seconds, "anchor_seconds": self.anchor_seconds}
        return row | times | self.figures | {"relative_l2": error}


def measure_forward(name: str, options: Options, place: Place, say: Say) -> dict[str, Any]:
    """One model."""
    model = TRANSFORMERS[name]
    say(f"{name}: writing random weights")
    parameters = make_checkpoint(model, place.checkpoint(name))
    big = 4 * parameters > BIG_BYTES
    # --engine openvino evaluates the graph that "OpenVINO, this project's graphs" does: one row for both.
    names = [peer for peer in options.peers if peer not in (ANCHOR, "ours-openvino")]
    anchor, others = Turn(ANCHOR), [Turn(peer) for peer in names]
    needed = WEIGHTS_HELD * 4 * parameters
    for group in [[turn] for turn in others] if big else [others]:
        for turn in [anchor, *group]:
            if turn.process is None and turn.refused is None:
                say(f"{name}: preparing {PEERS[turn.peer].label}")
                turn.begin(place, name, needed)
        if anchor.refused is not None:
            raise SystemExit(f"{PEERS[ANCHOR].label}, which the others are paired with, cannot run: {anchor.refused}")
        _take_turns(anchor, group, options.rounds)
        for turn in group:
            turn.end()
            if big:
                _remove(Path(place.job(turn.peer, name).work))
    anchor.end()
    shutil.rmtree(place.root / name)
    truth = next((turn.output for turn in others if turn.peer == REFERENCE), None)
    return {
        "parameters": parameters,
        "tokens": model.tokens,
        "layers": model.config["num_layers"],
        "rounds": options.rounds,
        "side_by_side": not big,
        "rows": [turn.record(truth) for turn in [*others, anchor]],
    }


def _take_turns(anchor: Turn, group: Sequence[Turn], rounds: int) -> None:
    """The anchor and every other, each round from another one on."""
    for number in range(rounds):
        turns = [anchor, *group]
        first = number % len(turns)
        seconds = {turn.peer: turn.forward() for turn in [*turns[first:], *turns[:first]]}
        base = seconds[anchor.peer]
        for turn in turns:
            own = seconds[turn.peer]
            if own is not None and base is not None:
                turn.seconds.append(round(own, 5))
                turn.anchor_seconds.append(round(base, 5))


def _remove(folder: Path) -> None:
    """What a big model's peer made: as much as the checkpoint, each."""
    shutil.rmtree(folder, ignore_errors=True)


def _insist_on_memory(needed: float) -> None:
    """Raises `Refused` where a peer would drive the machine out of memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    if available < needed:
        raise Refused(
            f"it needs about {needed / 2**30:.1f} GiB of memory and {available / 2**30:.1f} GiB are available"
        )
