"""Makes clips and their files; an mp4 is encoded in a thread of its own while later frames are decoded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sora_runtime.background import Background
from sora_runtime.video import VideoWriter, frame_rate, write_frames, write_gif

if TYPE_CHECKING:
    from sora_runtime.cli.outputs import Outputs
    from sora_runtime.clip import Clip
    from sora_runtime.runtime import Runtime
    from sora_runtime.video import Rgb8


def make_clips(
    runtime: Runtime,
    prompt: str,
    seeds: Sequence[int],
    request: Mapping[str, Any],
    outputs: Sequence[Outputs],
    on_progress: Callable[[str, int, int], None],
) -> Iterator[Clip]:
    """Generates a clip for each seed and writes its files; the receipts say what the mp4 took.

    Frames are kept only where a GIF or PNG files are wanted; for an mp4 alone they pass through.

    Raises:
        SoraError: Whatever `Runtime.generate` raises; OutputError if a file cannot be written.
    """
    fps = runtime.bundle.manifest.facts.fps if request["fps"] is None else request["fps"]
    frame_rate(fps)  # refused now, not when the first frames are there
    videos: list[_Video] = []

    def on_frames(rgb8: Rgb8) -> None:
        videos[-1].add(rgb8)

    hooks = {
        "on_progress": on_progress,
        "on_frames": on_frames,
        "keep_frames": any(files.gif or files.frames for files in outputs),
    }
    clips = _clips(runtime, prompt, seeds, request, hooks)
    for files in outputs:
        with _Video(files.mp4, fps) as video:
            videos[:] = [video]
            clip = next(clips)
            decoded = time.perf_counter()
        beyond = time.perf_counter() - decoded
        clip.receipt.record_encode(video.seconds, within_total=max(video.seconds - beyond, 0.0))
        if files.gif:
            write_gif(files.gif, clip.frames, clip.fps)
        if files.frames:
            write_frames(files.frames, clip.frames)
        yield clip


def _clips(
    runtime: Runtime, prompt: str, seeds: Sequence[int], request: Mapping[str, Any], hooks: Mapping[str, Any]
) -> Iterator[Clip]:
    if len(seeds) == 1:
        yield runtime.generate(prompt, **hooks, **request, seed=seeds[0])
    else:
        yield from runtime.generate_many(prompt, seeds, **hooks, **request)


class _Video:
    """The mp4 of one clip: opened with its first frames, as an invalid request is refused before a file is made."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path = path
        self._fps = fps
        self._files = ExitStack()
        self._writer: VideoWriter | None = None
        self._queue: Background[Rgb8] | None = None

    @property
    def seconds(self) -> float:
        """Spent encoding and writing, most of it while frames were decoded."""
        return 0.0 if self._writer is None else self._writer.seconds

    def add(self, rgb8: Rgb8) -> None:
        """Takes the next frames, uint8 [n, height, width, 3]; raises what went wrong with those before."""
        if self._writer is None or self._queue is None:
            height, width = rgb8.shape[1:3]
            writer = VideoWriter(self._path, width=width, height=height, fps=self._fps)
            self._writer = self._files.enter_context(writer)
            self._queue = self._files.enter_context(Background(writer.write))
        self._queue.put(rgb8)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)
