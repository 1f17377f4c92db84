"""mp4, GIF and PNG files: what was written can be read again, and what is no clip is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from clips import HEIGHT, WIDTH, names, psnr, read_mp4, smooth_clip, write_mp4
from sora_runtime.errors import InvalidRequest, OutputError
from sora_runtime.output import suffix_of
from sora_runtime.video import VideoWriter, frame_rate, write_frames, write_gif


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


@pytest.mark.parametrize("fps", [12.0, 16.0, 24000 / 1001, 1.0, 240.0])
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
    assert (frame_rate(1.0), frame_rate(240.0)) == (1, 240)


@pytest.mark.parametrize("fps", [0.0, 0.0001, 0.999, 240.1, -12.0, float("nan"), float("inf")])
def test_frame_rates_out_of_range_are_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(InvalidRequest) as here:
        frame_rate(fps)
    assert str(here.value) == f"fps = {fps:g} is out of range; use 1 to 240"
    for write in (
        lambda: write_mp4(tmp_path / "a.mp4", smooth_clip(2), fps),
        lambda: write_gif("a", smooth_clip(2), fps),
    ):
        with pytest.raises(InvalidRequest, match="fps = "):
            write()
    assert names(tmp_path) == []


def test_a_suffix_tells_the_kind_in_any_case() -> None:
    assert [suffix_of(name) for name in ("a/Clip.MP4", Path("x.Gif"), "a.mp4/clip")] == [".mp4", ".gif", ""]


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


@pytest.mark.parametrize("shape", [(0, 48, 64, 3), (48, 64, 3), (2, 48, 64, 4)])
def test_what_is_no_clip_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for write in (lambda x: write_gif(tmp_path / "a.gif", x, 12), lambda x: write_frames(tmp_path / "a", x)):
        with pytest.raises(InvalidRequest, match="are not a clip"):
            write(np.zeros(shape, np.uint8))
    assert names(tmp_path) == []
