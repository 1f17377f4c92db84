"""The names that `sora-bench run` writes to: refused before a clip is made, or good."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_runtime import Command, FakeRuntime, names, num_frames_of


@pytest.mark.parametrize("option", ["--out", "--gif", "--frames-dir", "--json"])
@pytest.mark.parametrize("name", ["a" * 296 + ".mp4", "a" * 300 + "/b.mp4"])
def test_too_long_a_name_is_one_line(
    sora_bench: Command, fake: FakeRuntime, tmp_path: Path, option: str, name: str
) -> None:
    result = sora_bench("run", "a red circle", option, name)
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: cannot write {name}: file name too long; choose a shorter name\n",
    )
    assert fake.loaded == []
    assert names(tmp_path) == []


def test_the_longest_name_there_is(sora_bench: Command, fake: FakeRuntime, tmp_path: Path) -> None:
    name = "é" * 125 + "a.mp4"  # 255 bytes
    assert sora_bench("run", "a red circle", "--out", name).exit_code == 0
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("ending", [".MP4", ".Mp4"])
def test_the_ending_may_be_in_capitals(sora_bench: Command, fake: FakeRuntime, tmp_path: Path, ending: str) -> None:
    assert sora_bench("run", "a red circle", "--out", f"a{ending}").exit_code == 0
    assert names(tmp_path) == [f"a{ending}"]
    assert num_frames_of(tmp_path / f"a{ending}") == 9


def test_a_link_to_itself_is_no_crash(sora_bench: Command, fake: FakeRuntime, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to("a.mp4")
    assert sora_bench("run", "a red circle", "--out", "a.mp4").exit_code == 0
    assert num_frames_of(tmp_path / "a.mp4") == 9


@pytest.mark.parametrize("option", ["--out", "--gif", "--frames-dir", "--json"])
@pytest.mark.parametrize("folder", ["missing", "file"])
def test_files_are_checked_before_generating(
    sora_bench: Command, fake: FakeRuntime, tmp_path: Path, option: str, folder: str
) -> None:
    (tmp_path / "file").write_text("")
    result = sora_bench("run", "a red circle", option, f"{folder}/a.mp4")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert folder in result.stderr
    assert result.stderr.count("\n") == 1
    assert fake.loaded == []
    assert names(tmp_path) == ["file"]


def test_every_file_of_a_repeat_is_checked_before_generating(
    sora_bench: Command, fake: FakeRuntime, tmp_path: Path
) -> None:
    (tmp_path / "clip-2.mp4").mkdir()
    result = sora_bench("run", "a red circle", "--repeat", 3)
    assert (result.exit_code, result.stderr) == (
        1,
        "error: clip-2.mp4 is a folder; give the name of a file in it\n",
    )
    assert fake.loaded == []
