"""What the parent tells a peer's process and what it hears back: records that JSON carries."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Refused(Exception):
    """A peer cannot run here; the message is one sentence."""


@dataclass(frozen=True)
class Job:
    """What a peer is to load.

    Attributes:
        model: a name of `benchmarks.peers.models`.
        checkpoint: a folder in diffusers' layout; of a clip model also this project's bundle.
        work: a folder for what the peer makes ahead of time.
        threads: of the peer.
        options: what only some peers know: `embedding_cache_dir`.
    """

    model: str
    checkpoint: str
    work: str
    threads: int
    options: dict[str, Any] = field(default_factory=dict)

    def file(self, name: str) -> Path:
        """A file of the folder for what the peer makes."""
        return Path(self.work) / name


@dataclass(frozen=True)
class Ask:
    """One clip: its start noise is torch's of the seed; `more` are fields that only this runtime's requests have."""

    prompt: str
    seed: int
    steps: int
    guidance: float
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """A clip: rgb8 [frames, height, width, 3], float32 latents [1, channels, frames, height, width]."""

    frames: NDArray[np.uint8]
    latents: NDArray[np.float32]
    evaluations: int


class FirstFrame(Protocol):
    """Called by a peer when the first frame lies in memory as rgb8."""

    def __call__(self) -> None:
        """Notes the time."""


class Adapter(Protocol):
    """A peer: how its library loads a checkpoint and runs it. Any exception is a refusal."""

    def prepare(self, job: Job) -> None:
        """Make ahead of time what it loads; runs in a process that then ends."""

    def load(self, job: Job) -> None:
        """Load what `prepare` made, or the checkpoint."""

    def run(self, ask: Ask, first_frame: FirstFrame) -> Drawn:
        """Make a clip; for clip models."""

    def forward(self) -> NDArray[np.float32]:
        """One evaluation of the transformer on the model's inputs; for transformers alone."""
