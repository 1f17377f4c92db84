"""No folder, no permission, no space: one sentence each, and nothing half-written stays."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from clips import HEIGHT, WIDTH, names, smooth_clip, write_mp4
from sora_runtime.errors import OutputError
from sora_runtime.output import check_file, check_folder, write_text
from sora_runtime.video import write_frames, write_gif

UNWRITABLE = {
    "missing": "folder .*missing does not exist; create it",
    "file": "file is a file, not a folder",
    "/proc": "cannot write /proc/clip",  # where even root cannot make a file
}


@pytest.mark.parametrize("folder", UNWRITABLE)
@pytest.mark.parametrize("ending", ["mp4", "gif", "folder", "json"])
def test_unwritable_folders_are_one_sentence(tmp_path: Path, folder: str, ending: str) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / folder / f"clip.{ending}"
    with pytest.raises(OutputError, match=UNWRITABLE[folder]):
        if ending == "mp4":
            write_mp4(path, smooth_clip(2))
        elif ending == "gif":
            write_gif(path, smooth_clip(2), 12)
        elif ending == "folder":
            write_frames(path, smooth_clip(2))
        else:
            write_text(path, "{}")
    assert names(tmp_path) == ["file"]


def test_a_folder_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder; give the name of a file"):
        write_mp4(tmp_path, smooth_clip(2))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        write_frames(tmp_path / "file", smooth_clip(2))


@pytest.fixture
def locked_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in which this process may not even ask what exists."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0)
    root = os.geteuid() == 0
    if root:
        try:
            os.seteuid(65534)
        except OSError:
            pytest.skip("root that cannot become another user may read every folder")
    yield folder
    if root:
        os.seteuid(0)


@pytest.mark.parametrize("check", [check_file, check_folder])
@pytest.mark.parametrize("name", ["clip", "folder/clip"])
def test_an_unreadable_folder_is_one_sentence(locked_folder: Path, check: Callable[[Path], None], name: str) -> None:
    with pytest.raises(OutputError) as refused:
        check(locked_folder / name)
    sentence = f"cannot write {locked_folder / name}: permission denied; choose a folder that can be written to"
    assert str(refused.value) == sentence


def test_a_link_to_nowhere_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OutputError, match="link is a file, not a folder"):
        check_folder(tmp_path / "link")


FULL_DISK = """
import resource, signal, sys
import numpy as np
from sora_runtime.errors import OutputError
from sora_runtime.video import VideoWriter, write_frames, write_gif

kind, path, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
noise = np.random.default_rng(0).integers(0, 255, (90, 48, 64, 3), np.uint8)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails with EFBIG
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    if kind == "gif":
        write_gif(path, noise, 12)
    elif kind == "png":
        write_frames(path, noise)
    else:
        with VideoWriter(path, width=64, height=48, fps=12) as writer:
            for frame in noise:
                writer.write(frame[None])
except OutputError as error:
    print(error)
    sys.exit(7)
"""


def write_with_limit(kind: str, path: Path, limit: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FULL_DISK, kind, str(path), str(limit)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", ["mp4", "gif", "png"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"clip.{kind}"
    done = write_with_limit(kind, path, 1 << 30)
    assert done.returncode == 0, done.stderr
    largest = max(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
    # Fails while frames come, when the last ones are flushed, and when the index is moved.
    for limit in (1000, largest // 2, largest - 1):
        folder = tmp_path / f"limit{limit}"
        folder.mkdir()
        done = write_with_limit(kind, folder / path.name, limit)
        assert done.returncode == 7, f"limit {limit}: {done.stdout}{done.stderr}"
        assert done.stdout == (
            f"cannot write {folder / path.name}: file too large; "
            "raise the file size limit (ulimit -f) or choose another folder\n"
        )
        assert names(folder) == [], f"limit {limit}"


NO_SPACE = "no space left on device; free some space or choose another folder"


def write_any(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, HEIGHT, WIDTH, 3), np.uint8)
    if path.suffix == ".mp4":
        write_mp4(path, noise)
    elif path.suffix == ".gif":
        write_gif(path, noise[:3], 12)
    else:
        write_text(path, "{}")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "receipt.json"])
def test_no_space_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no file that is always full")
    linked = []

    def link_to_full(path: Path) -> Path:
        partial = path.with_name(f".{path.name}.partial-{len(linked)}")
        if linked:  # the first name is that of the check before
            partial.symlink_to(full)
        linked.append(partial)
        return partial

    monkeypatch.setattr("sora_runtime.output.partial_name", link_to_full)
    with pytest.raises(OutputError) as refused:
        write_any(tmp_path / name)
    assert str(refused.value) == f"cannot write {tmp_path / name}: {NO_SPACE}"
    assert len(linked) == 2
    assert names(tmp_path) == []


class FullContainer:
    """An open mp4 on a disk that fills up after some packets."""

    def __init__(self, container: Any) -> None:
        self.container = container

    def __getattr__(self, name: str) -> Any:
        return getattr(self.container, name)

    def mux(self, packets: list[Any]) -> None:
        if packets:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_space_while_frames_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    av_open = av.open
    monkeypatch.setattr(av, "open", lambda *words, **more: FullContainer(av_open(*words, **more)))
    with pytest.raises(OutputError) as refused:
        write_any(tmp_path / "clip.mp4")
    assert str(refused.value) == f"cannot write {tmp_path / 'clip.mp4'}: {NO_SPACE}"
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "receipt.json"])
def test_no_space_when_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / name).write_bytes(b"an older one")
    with pytest.raises(OutputError) as refused:
        write_any(tmp_path / name)
    assert str(refused.value) == f"cannot write {tmp_path / name}: {NO_SPACE}"
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"an older one"


def test_flushing_is_part_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.3))
    started = time.perf_counter()
    writer = write_mp4(tmp_path / "clip.mp4", smooth_clip(2))
    assert 0.3 <= writer.seconds <= time.perf_counter() - started  # and no part of it twice
