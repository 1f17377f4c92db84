"""What peers have in common whose networks are called step by step from diffusers' loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.jobs import Ask, Drawn, FirstFrame, Job
from benchmarks.peers.models import CLIPS, TRANSFORMERS

Network = Callable[..., NDArray[np.float32]]


class InDiffusersLoop(ABC):
    """A clip by WanPipeline around networks of another library, or one evaluation of a transformer alone."""

    def __init__(self) -> None:
        self._pipeline: Any = None
        self._transformer: Any = None
        self._inputs: list[NDArray[np.float32]] = []

    def load(self, job: Job) -> None:
        """Compile the graphs for the CPU."""
        if job.model == CLIPS:
            import torch

            from benchmarks.peers.pipeline import pipeline_around

            torch.set_num_threads(job.threads)
            self._pipeline = pipeline_around(job.checkpoint, self._networks(job))
            return
        self._transformer = self._alone(job)
        self._inputs = list(TRANSFORMERS[job.model].inputs().values())

    def run(self, ask: Ask, first_frame: FirstFrame) -> Drawn:
        """A clip by WanPipeline around the networks."""
        from benchmarks.peers.pipeline import draw

        return draw(self._pipeline, ask, first_frame)

    def forward(self) -> NDArray[np.float32]:
        """An evaluation."""
        output: NDArray[np.float32] = self._transformer(*self._inputs)
        return output

    @abstractmethod
    def _networks(self, job: Job) -> Mapping[str, Network]:
        """The parts of the pipeline by name."""

    @abstractmethod
    def _alone(self, job: Job) -> Network:
        """The transformer."""
