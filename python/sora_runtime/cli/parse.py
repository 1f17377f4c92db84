"""What words of the command line mean: sizes, and the two meanings of ``--frames``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from sora_runtime.errors import InvalidRequest

_SIZE = re.compile(r"(\d+)[xX](\d+)", re.ASCII)
_NUMBER = re.compile(r"[-+]?\d[\d.]*", re.ASCII)


class PixelSize(NamedTuple):
    """Pixels of a frame."""

    width: int
    height: int


def parse_size(text: str) -> PixelSize:
    """Reads WIDTHxHEIGHT.

    Raises:
        InvalidRequest: The text is something else.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"--size {text} is not WIDTHxHEIGHT in pixels; use one such as 96x96")
    return PixelSize(int(match[1]), int(match[2]))


def split_list(texts: list[str]) -> list[str]:
    """The values of an option that may be repeated and may hold several with commas between them."""
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def parse_numbers(name: str, texts: list[str]) -> list[int]:
    """Whole numbers.

    Raises:
        InvalidRequest: A text is something else.
    """
    for text in texts:
        if not re.fullmatch(r"[-+]?\d+", text, re.ASCII):
            raise InvalidRequest(f"{name} {text} is not a whole number; use one such as 25")
    return [int(text) for text in texts]


def parse_levels(name: str, texts: list[str] | None) -> list[float] | None:
    """A number for each step; None if the option was not given.

    Raises:
        InvalidRequest: A text is no number.
    """
    if texts is None:
        return None
    levels = []
    for text in split_list(texts):
        try:
            levels.append(float(text))
        except ValueError:
            raise InvalidRequest(f"{name} {text} is not a number; use one such as 0.75") from None
    return levels


def parse_seeds(texts: list[str] | None, seed: int, repeat: int) -> list[int]:
    """The seeds of the clips to make: those of ``--seeds 1,2,3``, or ``repeat`` of them from ``seed`` on.

    Raises:
        InvalidRequest: One is not a whole number, or both ways are used at once.
    """
    if texts is None:
        return [seed + index for index in range(repeat)]
    if repeat > 1 or seed:
        raise InvalidRequest(f"--seeds says which clips to make; leave out {'--repeat' if repeat > 1 else '--seed'}")
    seeds = parse_numbers("--seeds", split_list(texts))
    if not seeds:
        raise InvalidRequest("--seeds names no seed; use some such as 1,2,3")
    return seeds


def parse_frames(frames: list[str], num_frames: int | None, frames_dir: Path | None) -> tuple[int | None, Path | None]:
    """Merges ``--frames N|DIR`` with ``--num-frames`` and ``--frames-dir``.

    Args:
        frames: What is a number there counts frames, the rest are folders (./25 is a folder too).
        num_frames: None if not given.
        frames_dir: None if not given.

    Returns:
        The number of frames and the folder for PNG files, None for what was not given.

    Raises:
        InvalidRequest: One meaning is given twice, or a number is not whole.
    """
    numbers = [] if num_frames is None else [num_frames]
    folders = [] if frames_dir is None else [frames_dir]
    for text in frames:
        if not _NUMBER.fullmatch(text):
            folders.append(Path(text))
        elif "." in text:
            raise InvalidRequest(f"--frames {text} is not a whole number; use one such as 25")
        else:
            numbers.append(int(text))
    for what, given in (("the number of frames", numbers), ("the folder of frames", folders)):
        if len(given) > 1:
            raise InvalidRequest(f"{what} is given twice, {given[0]} and {given[1]}; give it once")
    return (numbers[0] if numbers else None), (folders[0] if folders else None)


def check_text(name: str, text: str | None) -> None:
    """Refuses bytes that no receipt could hold.

    Raises:
        InvalidRequest: The text came from bytes that are not valid in the locale's encoding.
    """
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name} is not valid UTF-8; use a UTF-8 terminal") from None
