"""What a run of the table is asked for, and where it works."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.jobs import Job
from benchmarks.peers.models import CLIPS, MODELS
from benchmarks.peers.registry import PEERS
from sora_runtime.machine import available_cores

PARTS = ("clips", "levers", "cold", "forward")
RESULT = Path(__file__).parent.parent / "results" / "peers.json"


@dataclass(frozen=True)
class Options:
    """Of a run.

    Attributes:
        parts: of `PARTS`.
        models: of `models.MODELS`, or the tiny ones.
        peers: of `registry.PEERS`; diffusers and this runtime's int8 are what the others are held against.
        prompts: clips of `clips` and `levers`.
        steps: of a clip of `clips`, and of the reference of `levers`; 50 is diffusers' default.
        cold_rounds: new processes of each peer.
        cold_steps: of their clips; 20 is wan-pocket's default.
        rounds: forwards of each peer.
        threads: of every peer.
    """

    parts: tuple[str, ...] = PARTS
    models: tuple[str, ...] = MODELS
    peers: tuple[str, ...] = tuple(PEERS)
    prompts: int = 100
    steps: int = 50
    cold_rounds: int = 5
    cold_steps: int = 20
    rounds: int = 5
    threads: int = field(default_factory=available_cores)


@dataclass(frozen=True)
class Place:
    """Where peers put what they make ahead of time, shared by the parts of a run."""

    root: Path
    threads: int

    def job(self, peer: str, model: str = CLIPS, **options: Any) -> Job:
        """What a peer loads of a shipped model, or of a transformer whose checkpoint lies here."""
        from sora_runtime.bundle import find_bundle

        shipped = model.startswith(CLIPS)
        checkpoint = find_bundle(model) if shipped else self.checkpoint(model)
        kind = CLIPS if shipped else model
        return Job(kind, str(checkpoint), str(self.root / model / peer), self.threads, options)

    def checkpoint(self, model: str) -> Path:
        """The folder of a transformer's random weights."""
        return self.root / model / "checkpoint"


@contextmanager
def workplace(threads: int) -> Iterator[Place]:
    """A folder for one run, removed when it ends."""
    root = Path(tempfile.mkdtemp(prefix="sora-peers-"))
    try:
        yield Place(root, threads)
    finally:
        shutil.rmtree(root, ignore_errors=True)


Say = Callable[[str], None]
"""Called with a sentence now and then."""
