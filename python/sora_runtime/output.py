"""Writes files so that an unfinished one never bears its final name."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sora_runtime.errors import OutputError

_REMEDIES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EFBIG: "raise the file size limit (ulimit -f) or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def suffix_of(path: Path | str) -> str:
    """The ending that tells a file's kind, in lower case: ``.mp4`` for ``Clip.MP4``."""
    return Path(path).suffix.lower()


def partial_name(path: Path) -> Path:
    """The name in the same folder (so that a rename is atomic) under which ``path`` is written."""
    # Cut, so that a name of the longest length there can be still has room for the addition.
    return path.with_name(f".{path.name[:32]}.partial-{os.getpid()}-{secrets.token_hex(3)}")


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into an OutputError that names ``path`` and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "choose a folder that can be written to")
        reason = (os.strerror(error.errno) if error.errno else str(error)).lower()
        raise OutputError(f"cannot write {path}: {reason}; {remedy}") from error


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Yields the name to write to; renames it to ``path`` when the block succeeds.

    Whatever the block raises (KeyboardInterrupt too), the partial file is removed and a file that
    bore the name ``path`` before is left as it was.

    Raises:
        OutputError: The folder is missing or cannot be written to, or the disk is full.
    """
    check_file(path)
    partial = partial_name(path)
    try:
        with explain_os_errors(path):
            partial.touch()
        yield partial
        with explain_os_errors(path):
            _flush_to_disk(partial)
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` as UTF-8, wholly or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    with partial_file(path) as partial, explain_os_errors(path):
        partial.write_text(text, encoding="utf-8")


def check_file(path: Path) -> None:
    """Refuses a name that no file can be written to, by trying; cheap enough before every clip.

    Raises:
        OutputError: ``path`` is a folder or too long, or its folder is missing or cannot be written to.
    """
    with explain_os_errors(path):
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give the name of a file in it")
        _check_parent(path)


def check_folder(path: Path) -> None:
    """As `check_file`, for a folder to write files into: one that exists, or is to be made in one that does.

    Raises:
        OutputError: ``path`` is a file or too long, or the folder that exists cannot be written to.
    """
    with explain_os_errors(path):
        if path.is_dir():
            _check_writable(path / "file")
        elif os.path.lexists(path):  # a link to nowhere too: no folder can get its name
            raise OutputError(f"{path} is a file, not a folder; choose another name")
        else:
            _check_parent(path)


def replace_files(new: Path, folder: Path, pattern: re.Pattern[str], aside: Path) -> None:
    """Moves the files of ``new`` into ``folder`` in place of those whose whole name matches ``pattern``.

    What stood there is held in ``aside`` (to be made, on the same disk) meanwhile. Whatever goes wrong
    (KeyboardInterrupt too), it is put back, and ``folder`` is as it was; other files are never touched.
    """
    arriving = sorted(path.name for path in new.iterdir())
    leaving = [path for path in folder.iterdir() if pattern.fullmatch(path.name) and not path.is_dir()]
    aside.mkdir()
    try:
        for path in leaving:
            path.rename(aside / path.name)
        for name in arriving:
            (new / name).rename(folder / name)
    except BaseException:
        # The disk tells how far it came; a list kept by hand may lag by the move that was interrupted.
        for name in arriving:
            if not (new / name).exists():
                (folder / name).rename(new / name)
        for path in aside.iterdir():
            path.rename(folder / path.name)
        raise


def _check_parent(path: Path) -> None:
    folder = path.parent
    if not folder.exists():
        raise OutputError(f"folder {folder} does not exist; create it or choose another")
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file, not a folder; choose another folder")
    _check_writable(path)


def _check_writable(path: Path) -> None:
    # Permission bits do not tell: root ignores them, and a disk may be mounted read-only.
    probe = partial_name(path)
    try:
        probe.touch()
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    """Where space is allocated late (NFS, quotas), a full disk is only reported here."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
