"""Folders of PNG frames: exact, and swapped all or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clips import names, smooth_clip
from sora_runtime.errors import OutputError
from sora_runtime.video import write_frames


def test_png_frames_are_exact_and_replace_older_ones(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    write_frames(folder, smooth_clip(9)[::-1])
    (folder / "notes.txt").write_text("mine")
    frames = smooth_clip(5)
    write_frames(folder, frames)
    assert names(folder) == [*(f"{i:05d}.png" for i in range(5)), "notes.txt"]
    for index, frame in enumerate(frames):
        with Image.open(folder / f"{index:05d}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), frame)
    assert names(tmp_path) == ["frames"]


def test_interrupted_png_frames_leave_the_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_frames(tmp_path / "frames", smooth_clip(2))
    save, saved = Image.Image.save, []

    def interrupted(self: Image.Image, path: Path) -> None:
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(path)
        save(self, path)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_frames(tmp_path / "frames", smooth_clip(9))
    assert names(tmp_path) == ["frames"]
    assert names(tmp_path / "frames") == ["00000.png", "00001.png"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("count", range(9))
def test_swapping_png_frames_is_all_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException], moved: bool, count: int
) -> None:
    folder = tmp_path / "frames"
    write_frames(folder, smooth_clip(4)[::-1])
    (folder / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    rename, calls = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(self)
        stop = len(calls) == count + 1
        if stop and not moved:
            raise kind
        result = rename(self, target)
        if stop:
            raise kind
        return result

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(OutputError if kind is OSError else kind):
        write_frames(folder, smooth_clip(5))  # 4 + 5 renames: each is interrupted, before and after
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert names(tmp_path) == ["frames"]


def test_a_new_folder_of_png_frames_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, seen = Path.rename, []

    def watched(self: Path, target: Path) -> Path:
        seen.append((target.exists(), names(self)))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    write_frames(tmp_path / "frames", smooth_clip(3))
    assert seen == [(False, ["00000.png", "00001.png", "00002.png"])]
    assert names(tmp_path) == ["frames"]
    assert names(tmp_path / "frames") == seen[0][1]


def test_png_frames_through_a_link_stay_behind_it(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    write_frames(tmp_path / "link", smooth_clip(2))
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "elsewhere") == ["00000.png", "00001.png"]


def test_a_folder_named_like_a_frame_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "frames" / "00001.png").mkdir(parents=True)
    with pytest.raises(OutputError, match="is a directory"):
        write_frames(tmp_path / "frames", smooth_clip(2))
    assert names(tmp_path / "frames") == ["00001.png"]
