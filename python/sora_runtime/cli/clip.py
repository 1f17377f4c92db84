"""Makes one clip and its files; the mp4 is encoded while later frames are still being decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from sora_runtime.video import VideoWriter, frame_rate, write_frames, write_gif

if TYPE_CHECKING:
    from sora_runtime.cli.outputs import Outputs
    from sora_runtime.clip import Clip
    from sora_runtime.runtime import Runtime
    from sora_runtime.video import Rgb8


def make_clip(
    runtime: Runtime,
    prompt: str,
    request: Mapping[str, Any],
    outputs: Outputs,
    on_progress: Callable[[str, int, int], None],
) -> Clip:
    """Generates a clip and writes its files; the receipt says what the mp4 took.

    Raises:
        SoraError: Whatever `Runtime.generate` raises; OutputError if a file cannot be written.
    """
    fps = runtime.bundle.manifest.facts.fps if request["fps"] is None else request["fps"]
    frame_rate(fps)  # refused now, not when the first frames are there
    writers: list[VideoWriter] = []
    with ExitStack() as files:

        def on_frames(rgb8: Rgb8) -> None:
            if not writers:  # only now: an invalid request is refused before a file is made
                height, width = rgb8.shape[1:3]
                writer = VideoWriter(outputs.mp4, width=width, height=height, fps=fps)
                writers.append(files.enter_context(writer))
            writers[0].write(rgb8)

        clip = runtime.generate(prompt, on_progress=on_progress, on_frames=on_frames, **request)
        while_decoding = writers[0].seconds
    clip.receipt.record_encode(writers[0].seconds, within_total=while_decoding)
    if outputs.gif:
        write_gif(outputs.gif, clip.frames, clip.fps)
    if outputs.frames:
        write_frames(outputs.frames, clip.frames)
    return clip
