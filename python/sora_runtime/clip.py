"""What a request gives: frames, latents and the receipt."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidRequest
from .output import suffix_of
from .receipt import Receipt


@dataclass
class Clip:
    """What a request gave.

    Attributes:
        frames: uint8 [num_frames, height, width, 3], RGB; none of a clip made with `keep_frames=False`.
        fps: frames per second.
        latents: float32 [1, channels, frames, height, width], as the decoder took them.
        receipt: what it took; see `Receipt`.
        norms: [rows] of the sums output, output_change, residual, input and input_change (float64, of absolute
            values over the clip) that step reuse measured and decided by; None without a policy that measures.
    """

    frames: NDArray[np.uint8]
    fps: float
    latents: NDArray[np.float32]
    receipt: Receipt
    norms: NDArray[np.void] | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the clip as .mp4 or .gif, by the name's ending; the receipt gets the time an mp4 took.

        Raises:
            InvalidRequest: another ending, or the frames were not kept.
            OutputError: it cannot be written; nothing is left under `path`.
        """
        from .video import VideoWriter, write_gif  # PyAV is slow to import

        if not len(self.frames):
            raise InvalidRequest("the clip was made with keep_frames=False; keep them, or write what on_frames gets")
        target = Path(path)
        suffix = suffix_of(target)
        if suffix == ".gif":
            write_gif(target, self.frames, self.fps)
            return
        if suffix != ".mp4":
            raise InvalidRequest(f"'{target.name}' ends in neither .mp4 nor .gif; use one of them")
        height, width = self.frames.shape[1:3]
        with VideoWriter(target, width=width, height=height, fps=self.fps) as writer:
            writer.write(self.frames)
        self.receipt.record_encode(writer.seconds)
