"""From embeddings to frames: one clip on the engines of its bucket, and what the clips of one call share."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import _core
from .decode import collect_frames
from .denoise import DenoiseResult, Embeddings
from .embedding_tiers import EncoderUse
from .programs import ChosenReuse
from .request import ResolvedRequest
from .sampling import SamplerProgram
from .stages import Stages
from .text import TextUse

OnProgress = Callable[[str, int, int], None]
OnFrames = Callable[[NDArray[np.uint8]], None]


def ignore_progress(_stage: str, _done: int, _total: int) -> None:
    """For callers who do not want to hear of it."""


@dataclass(frozen=True)
class Hooks:
    """What the caller of a clip wants to hear of it, and how they stop it."""

    report: OnProgress
    on_frames: OnFrames | None
    cancel: _core.CancelToken | None
    keep_frames: bool = True


@dataclass
class Shared:
    """What all clips of one call have in common, computed once; seconds are of all clips together."""

    requests: Sequence[ResolvedRequest]  # that differ in their seeds alone
    program: SamplerProgram
    reuse: ChosenReuse | None
    embeddings: Embeddings
    text: TextUse
    picture: EncoderUse | None = None
    seconds: float = 0.0  # of everything here, without loading engines

    def add_picture(self, stages: Stages, hooks: Hooks) -> float:
        """Encode the picture, if there is one; returns the seconds that loading its encoders took."""
        start = time.perf_counter()
        self.embeddings, self.picture = stages.condition(self.embeddings, self.requests[0], hooks.report, hooks.cancel)
        loading = 0.0 if self.picture is None else self.picture.load_seconds
        self.seconds += time.perf_counter() - start - loading
        return loading


@dataclass(frozen=True)
class Made:
    """A clip's frames, and the seconds its own stages took."""

    frames: NDArray[np.uint8]
    denoised: DenoiseResult
    graphs: list[str]
    denoise: float
    vae_decode: float
    decoder_engine_seconds: float


def make(stages: Stages, shared: Shared, request: ResolvedRequest, hooks: Hooks) -> Made:
    """Denoise and decode a clip.

    Raises:
        Cancelled: stopped through `hooks.cancel`.
        EngineError: an engine failed, or the latents diverged.
    """
    start, decoder_before = time.perf_counter(), stages.decoder.seconds
    denoised = stages.denoise(shared.program, shared.embeddings, request, hooks.report, hooks.cancel)
    denoise_seconds = time.perf_counter() - start
    chunks = stages.decoder.rgb8_chunks(denoised.latents, num_threads=stages.num_threads)
    frames, decode_seconds = collect_frames(
        chunks, request.geometry, hooks.report, hooks.on_frames, hooks.cancel, keep=hooks.keep_frames
    )
    return Made(
        frames=frames,
        denoised=denoised,
        graphs=stages.graphs,
        denoise=denoise_seconds,
        vae_decode=decode_seconds,
        decoder_engine_seconds=stages.decoder.seconds - decoder_before,
    )
