"""mp4, GIF and PNG files: what was written can be read again, and nothing half-written stays."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sora_runtime.errors import InvalidRequest, OutputError
from sora_runtime.output import write_text
from sora_runtime.video import Rgb8, VideoWriter, frame_rate, write_frames, write_gif

HEIGHT, WIDTH = 48, 64


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def smooth_clip(num_frames: int = 25) -> Rgb8:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frames = [
        np.stack([128 + 100 * np.sin(x / 20 + i / 5), 128 + 100 * np.cos(y / 25 - i / 7), 2 * (x + y)], axis=-1)
        for i in range(num_frames)
    ]
    return np.stack(frames).clip(0, 255).astype(np.uint8)


def write_mp4(path: Path, frames: Rgb8, fps: float = 12.0, chunk: int = 4) -> VideoWriter:
    height, width = frames.shape[1:3]
    with VideoWriter(path, width=width, height=height, fps=fps) as writer:
        for start in range(0, len(frames), chunk):
            writer.write(frames[start : start + chunk])
    return writer


def read_mp4(path: Path) -> Rgb8:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def psnr(got: Rgb8, want: Rgb8) -> float:
    error = np.mean((got.astype(np.float64) - want.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error))


def test_mp4_holds_the_frames(tmp_path: Path) -> None:
    frames = smooth_clip()
    writer = write_mp4(tmp_path / "clip.mp4", frames)
    got = read_mp4(tmp_path / "clip.mp4")
    assert got.shape == frames.shape
    # crf 18 gives about 41 dB here; frames in another order or shifted by one stay below 25.
    assert psnr(got, frames) > 30
    assert psnr(got[1:], frames[:-1]) < 30
    assert writer.seconds > 0
    assert names(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize("fps", [12.0, 16.0, 24000 / 1001, 0.5])
def test_mp4_keeps_frame_rate_and_length(tmp_path: Path, fps: float) -> None:
    write_mp4(tmp_path / "clip.mp4", smooth_clip(9), fps)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == frame_rate(fps)
        times = [frame.time for frame in container.decode(video=0)]
        assert times == pytest.approx([i / fps for i in range(9)], rel=1e-4, abs=1e-4)
        assert float(stream.duration * stream.time_base) == pytest.approx(9 / fps, rel=1e-3)


def test_colours_are_bt709_limited_and_say_so(tmp_path: Path) -> None:
    frames = np.empty((3, HEIGHT, WIDTH, 3), np.uint8)
    frames[:] = (255, 0, 0)
    write_mp4(tmp_path / "clip.mp4", frames)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        assert [int(tag) for tag in tags] == [1, 1, 1, 1]
        planes = next(container.decode(video=0)).to_ndarray(format="yuv420p")
    # BT.709, limited range: Y = 16 + 219 * 0.2126 = 62.6, Cr = 240. BT.601 would give Y = 81.5.
    assert abs(int(planes[0, 0]) - 63) <= 2
    assert abs(int(planes[-1, -1]) - 240) <= 2


def test_index_is_at_the_front(tmp_path: Path) -> None:
    write_mp4(tmp_path / "clip.mp4", smooth_clip(5))
    data = (tmp_path / "clip.mp4").read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")


def test_frame_rate_is_a_broadcast_fraction() -> None:
    assert frame_rate(24000 / 1001) == Fraction(24000, 1001)
    assert frame_rate(16) == 16
    for fps in (0.0, -12.0, float("nan"), float("inf")):
        with pytest.raises(InvalidRequest, match="fps = "):
            frame_rate(fps)


@pytest.mark.parametrize(("width", "height"), [(65, 48), (64, 47), (0, 48)])
def test_odd_sizes_are_refused(tmp_path: Path, width: int, height: int) -> None:
    with pytest.raises(OutputError, match=f"^{width}x{height} cannot be encoded"):
        VideoWriter(tmp_path / "clip.mp4", width=width, height=height, fps=12)


def test_an_unknown_codec_is_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"cannot encode .* with libnothing"),
        VideoWriter(tmp_path / "clip.mp4", width=64, height=48, fps=12, codec="libnothing"),
    ):
        pass
    assert names(tmp_path) == []


def test_frames_of_another_shape_are_refused(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "clip.mp4", width=WIDTH, height=HEIGHT, fps=12)
    with pytest.raises(InvalidRequest, match=r"give uint8 \[t, 48, 64, 3\]"), writer:
        writer.write(smooth_clip(2).transpose(0, 2, 1, 3))
    assert names(tmp_path) == []


def test_a_video_without_frames_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="no frames"),
        VideoWriter(tmp_path / "clip.mp4", width=WIDTH, height=HEIGHT, fps=12),
    ):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ValueError])
@pytest.mark.parametrize("frames_before", [0, 60])  # 60: more than the encoder holds back
def test_an_interrupted_video_leaves_nothing(tmp_path: Path, kind: type[BaseException], frames_before: int) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"an older clip")
    with (
        pytest.raises(kind),
        VideoWriter(tmp_path / "clip.mp4", width=WIDTH, height=HEIGHT, fps=12) as writer,
    ):
        writer.write(smooth_clip(frames_before or 1))
        assert len(names(tmp_path)) == 2, "the partial file must be there for this test to mean anything"
        raise kind
    assert names(tmp_path) == ["clip.mp4"]
    assert (tmp_path / "clip.mp4").read_bytes() == b"an older clip"


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


def test_gif_keeps_frames_length_and_colours(tmp_path: Path) -> None:
    frames = smooth_clip()
    write_gif(tmp_path / "clip.gif", frames, 12)
    got, durations, palettes = [], [], set()
    with Image.open(tmp_path / "clip.gif") as image:
        assert image.info["loop"] == 0
        for index in range(image.n_frames):
            image.seek(index)
            durations.append(image.info["duration"])
            got.append(np.asarray(image.convert("RGB")))
            palettes.add(bytes(image.global_palette.palette))
    assert len(got) == 25
    assert set(durations) == {80, 90}
    assert sum(durations) == 2080  # 25 / 12 s to the hundredth
    assert len(palettes) == 1
    assert psnr(np.stack(got), frames) > 30  # 256 colours for the clip; web-safe ones give about 22


def test_gif_of_one_frame(tmp_path: Path) -> None:
    write_gif(tmp_path / "clip.gif", smooth_clip(1), 12)
    with Image.open(tmp_path / "clip.gif") as image:
        assert image.size == (WIDTH, HEIGHT)


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


@pytest.mark.parametrize("shape", [(0, 48, 64, 3), (48, 64, 3), (2, 48, 64, 4)])
def test_what_is_no_clip_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for write in (lambda x: write_gif(tmp_path / "a.gif", x, 12), lambda x: write_frames(tmp_path / "a", x)):
        with pytest.raises(InvalidRequest, match="are not a clip"):
            write(np.zeros(shape, np.uint8))
    assert names(tmp_path) == []
