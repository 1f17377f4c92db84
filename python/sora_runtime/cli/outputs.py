"""Where `sora-bench run` puts a clip: which files, checked before minutes are spent on making it."""

from __future__ import annotations

import json as json_format
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sora_runtime.errors import InvalidRequest
from sora_runtime.output import check_file, check_folder, suffix_of, write_text

if TYPE_CHECKING:
    from sora_runtime.receipt import Receipt

STDOUT = Path("-")


@dataclass(frozen=True)
class Outputs:
    """The files of one clip; None: not wanted."""

    mp4: Path
    gif: Path | None = None
    frames: Path | None = None

    def numbered(self, index: int) -> Outputs:
        """The files of one clip of several: ``clip.mp4`` becomes ``clip-0.mp4``."""
        return Outputs(
            _numbered(self.mp4, index),
            _numbered(self.gif, index) if self.gif else None,
            _numbered(self.frames, index) if self.frames else None,
        )

    def named(self) -> list[tuple[str, Path]]:
        """The option and the path of each file."""
        pairs = (("--out", self.mp4), ("--gif", self.gif), ("--frames", self.frames))
        return [(option, path) for option, path in pairs if path is not None]

    def check(self) -> None:
        """Refuses what could not be written later.

        Raises:
            InvalidRequest: ``mp4`` has another ending.
            OutputError: A folder is missing or cannot be written to.
        """
        if suffix_of(self.mp4) != ".mp4":
            raise InvalidRequest(f"--out {self.mp4} does not end in .mp4; use such a name (GIF: --gif, PNG: --frames)")
        check_file(self.mp4)
        if self.gif:
            check_file(self.gif)
        if self.frames:
            check_folder(self.frames)


def check_all(outputs: Sequence[Outputs], json: Path | None) -> None:
    """Refuses a set of files of which one could not be written or would replace another.

    Raises:
        InvalidRequest: Two names are the same file, or the video's is not an mp4's.
        OutputError: A folder is missing or cannot be written to.
    """
    named = [(option, path) for files in outputs for option, path in files.named()]
    if json is not None and json != STDOUT:
        named.append(("--json", json))
        check_file(json)
    seen: dict[str, str] = {}
    for option, path in named:
        real = os.path.realpath(path)  # Path.resolve raises where links lead in a circle
        if real in seen:
            raise InvalidRequest(f"{seen[real]} and {option} are both {path}; give two names")
        seen[real] = option
    for files in outputs:
        files.check()


def write_receipts(path: Path, receipts: list[Receipt], *, as_list: bool) -> None:
    """Writes one receipt, or the list of them, as JSON to a file or, for ``-``, to stdout.

    Raises:
        OutputError: The file cannot be written.
    """
    records = [receipt.model_dump(mode="json") for receipt in receipts]
    data = records if as_list else records[0]
    text = json_format.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if path == STDOUT:
        typer.echo(text.encode(), nl=False)  # JSON is UTF-8 whatever the terminal is
    else:
        write_text(path, text)


def _numbered(path: Path, index: int) -> Path:
    return path.with_name(f"{path.stem}-{index}{path.suffix}")
