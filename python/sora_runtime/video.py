"""Writes clips: mp4 while frames still arrive, animated GIF, and folders of PNG files."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from sora_runtime.errors import InvalidRequest, OutputError
from sora_runtime.output import check_folder, explain_os_errors, partial_file, partial_name, replace_files

Rgb8 = npt.NDArray[np.uint8]

_BT709 = 1  # H.273 tables 2 to 4: the number of BT.709 primaries, transfer and matrix alike
_FRAME_FILE = re.compile(r"\d{5,}\.png")
_PALETTE_SAMPLES = 1 << 14  # pixels; more cost seconds and hardly better the palette


def frame_rate(fps: float) -> Fraction:
    """The nearest fraction whose denominator broadcast rates use (24000/1001 stays exact).

    Raises:
        InvalidRequest: ``fps`` is not in 1 to 240.
    """
    if not 1 <= fps <= 240:  # NaN fails too
        raise InvalidRequest(f"fps = {fps:g} is out of range; use 1 to 240")
    return Fraction(fps).limit_denominator(1001)


class VideoWriter:
    """Encodes frames to H.264 in mp4 as they come; a context manager.

    The file is written under a temporary name in the same folder and gets its own name when the
    block ends well. Whatever goes wrong, nothing unfinished stays behind. Colours are BT.709 in
    limited range and tagged as such, 4:2:0; the index is at the front, so that browsers can start
    before they have the whole file.

    Args:
        path: The mp4 file to write; a file of that name is replaced at the end.
        width: Pixels, even.
        height: Pixels, even.
        fps: Frames per second, 1 to 240.
        codec: An encoder of ffmpeg that takes ``crf`` and yuv420p.
        crf: Constant rate factor: 0 lossless to 51; 18 is visually close to the source.

    Raises:
        InvalidRequest: The frame rate is out of range.
        OutputError: The file cannot be written (missing folder, full disk) or encoded (odd size).
    """

    def __init__(
        self,
        path: Path | str,
        *,
        width: int,
        height: int,
        fps: float,
        codec: str = "libx264",
        crf: int = 18,
    ) -> None:
        if width % 2 or height % 2 or width <= 0 or height <= 0:
            raise OutputError(
                f"{width}x{height} cannot be encoded: mp4 video (yuv420p) needs an even width "
                "and height; use even ones or write GIF or PNG"
            )
        self._path = Path(path)
        self._size = (height, width)
        self._rate = frame_rate(fps)
        self._codec = codec
        self._crf = crf
        self._container: Any = None
        self._stream: Any = None
        self._frames = 0
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """Seconds spent encoding and writing so far; complete once the block has ended and the file has its name."""
        return self._seconds

    def __enter__(self) -> Self:
        self._opened = self._open()
        with self._timed():
            return self._opened.__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._timed():
            self._opened.__exit__(exc_type, exc, traceback)

    def write(self, rgb8: Rgb8) -> None:
        """Encodes a chunk of frames, uint8 [t, height, width, 3].

        Raises:
            InvalidRequest: The array has another shape or dtype.
            OutputError: The file cannot be written.
        """
        if rgb8.dtype != np.uint8 or rgb8.ndim != 4 or rgb8.shape[1:] != (*self._size, 3):
            height, width = self._size
            raise InvalidRequest(
                f"frames of {rgb8.dtype} {list(rgb8.shape)} do not fit this video; give uint8 [t, {height}, {width}, 3]"
            )
        with self._timed(), self._explained():
            for image in rgb8:
                self._container.mux(self._stream.encode(self._to_yuv(image)))
                self._frames += 1

    @contextmanager
    def _open(self) -> Iterator[Self]:
        with partial_file(self._path) as partial:
            try:
                with self._explained():
                    options = {"movflags": "+faststart"}
                    self._container = av.open(str(partial), "w", format="mp4", options=options)
                    self._stream = self._add_stream()
                yield self
                with self._explained():
                    self._finish()
            finally:
                if self._container is not None:
                    with suppress(av.error.FFmpegError):
                        self._container.close()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - started

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with explain_os_errors(self._path):
                yield
        except (av.error.FFmpegError, av.codec.codec.UnknownCodecError) as error:
            reason = getattr(error, "strerror", None) or "this build of PyAV does not have it"
            raise OutputError(
                f"cannot encode {self._path} with {self._codec}: {reason}; try another codec or size"
            ) from error

    def _add_stream(self) -> Any:
        options = {"crf": str(self._crf)}
        stream = self._container.add_stream(self._codec, rate=self._rate, options=options)
        stream.height, stream.width = self._size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_range = int(ColorRange.MPEG)
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        return stream

    def _to_yuv(self, image: Rgb8) -> Any:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = frame.reformat(
            format="yuv420p",
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU709,
        )
        frame.pts = self._frames
        frame.time_base = 1 / self._rate
        return frame

    def _finish(self) -> None:
        if self._frames == 0:
            raise OutputError(f"cannot write {self._path}: no frames were given; write at least 1")
        self._container.mux(self._stream.encode(None))
        self._container.close()


def write_gif(path: Path | str, frames: Rgb8, fps: float) -> None:
    """Writes an endless animated GIF whose frames share one palette of 256 colours.

    GIF counts in 1/100 s, so delays differ by one unit to keep the clip's length; viewers do not
    go below 2 units, so a clip of more than 50 frames per second plays slower.

    Args:
        path: The file to write; a file of that name is replaced at the end.
        frames: uint8 [T, height, width, 3], T >= 1.
        fps: Frames per second, 1 to 240.

    Raises:
        InvalidRequest: The frame rate or the array is not as described.
        OutputError: The file cannot be written.
    """
    path, rate = Path(path), frame_rate(fps)
    _check_frames(frames)
    ends = [round(100 * (i + 1) / rate) for i in range(len(frames))]
    delays = [10 * max(2, end - start) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    palette = _shared_palette(frames)
    # Dithering would crawl from frame to frame and double the file.
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with partial_file(path) as partial, explain_os_errors(path):
        images[0].save(partial, "GIF", save_all=True, append_images=images[1:], duration=delays, loop=0)


def write_frames(folder: Path | str, frames: Rgb8) -> None:
    """Writes one PNG a frame: 00000.png, 00001.png and so on.

    A folder that is new gets its name once all frames are written. In one that exists, the frames of
    an earlier clip are replaced then, all or none; other files in it are left alone.

    Args:
        folder: The folder to write; made if missing, its parent must exist.
        frames: uint8 [T, height, width, 3], T >= 1.

    Raises:
        InvalidRequest: The array is not as described.
        OutputError: A file cannot be written.
    """
    folder = Path(folder)
    _check_frames(frames)
    check_folder(folder)
    # Not beside a folder that exists: it may be a link or a mount point, on another disk than its parent.
    exists = folder.is_dir()
    partial = partial_name(folder / "frames") if exists else partial_name(folder)
    new, aside = partial / "new", partial / "old"
    try:
        with explain_os_errors(folder):
            new.mkdir(parents=True)
            for index, frame in enumerate(frames):
                Image.fromarray(frame).save(new / f"{index:05d}.png")
            if exists:
                replace_files(new, folder, _FRAME_FILE, aside)
                shutil.rmtree(aside)
            else:
                new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        # Not with their content: frames that could not be put back are not lost.
        for left in (aside, partial):
            with suppress(OSError):
                left.rmdir()


def _check_frames(frames: Rgb8) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise InvalidRequest(
            f"frames of {frames.dtype} {list(frames.shape)} are not a clip; "
            "give uint8 [T, height, width, 3] with T >= 1"
        )


def _shared_palette(frames: Rgb8) -> Image.Image:
    """256 colours for the whole clip; one palette a frame would flicker and take more bytes."""
    pixels = frames.reshape(-1, 3)
    # An odd stride, so that samples do not stay in a few columns of the (even) width.
    sample = pixels[:: (len(pixels) // _PALETTE_SAMPLES) | 1]
    # A round of k-means gains 2 to 4 dB over the median cut alone.
    return Image.fromarray(np.ascontiguousarray(sample)[None]).quantize(256, kmeans=1)
