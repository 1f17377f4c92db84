"""`sora-bench run`: options reach the runtime, files appear whole or not at all, the receipt fits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import av
import pytest
from fake_runtime import TOTAL_SECONDS, Command, FakeRuntime
from PIL import Image

from sora_runtime.errors import BundleError, Cancelled, EngineError, InvalidRequest
from sora_runtime.receipt import Receipt
from sora_runtime.video import Rgb8, VideoWriter

DEFAULTS = {
    "prompt": "a red circle",
    "negative_prompt": None,
    "seed": 0,
    "num_inference_steps": None,
    "guidance_scale": None,
    "guidance_rescale": 0.0,
    "solver": None,
    "rng": "philox",
    "width": None,
    "height": None,
    "num_frames": None,
    "fps": None,
    "price_per_hour": None,
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def num_frames_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_defaults(sora_bench: Command, fake: FakeRuntime, tmp_path: Path) -> None:
    result = sora_bench("run", "a red circle")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""  # not a terminal: no bars
    assert fake.requests == [DEFAULTS]
    loading = {"num_threads": None, "verify": "once", "embedding_cache_dir": None}
    assert fake.loaded == [("wan-pocket", loading)]
    assert names(tmp_path) == ["clip.mp4"]
    assert num_frames_of(tmp_path / "clip.mp4") == 9


def test_every_option_reaches_the_runtime(sora_bench: Command, fake: FakeRuntime, tmp_path: Path) -> None:
    result = sora_bench(
        *("run", "a red circle", "--model", "folder", "--negative-prompt", "blur", "--seed", 7),
        *("--steps", 5, "--guidance-scale", 1.5, "--guidance-rescale", 0.7, "--solver", "euler"),
        *("--rng", "torch", "--size", "64x32", "--frames", 13, "--fps", 24, "--price-per-hour", 2.5),
        *("--threads", 3, "--embedding-cache", "cache", "--verify", "always", "--out", "a.mp4"),
        *("--frames", "stills", "--gif", "a.gif", "--json", "a.json", "--quiet"),
    )
    assert (result.exit_code, result.output) == (0, "")
    assert fake.requests == [
        {
            **DEFAULTS,
            "negative_prompt": "blur",
            "seed": 7,
            "num_inference_steps": 5,
            "guidance_scale": 1.5,
            "guidance_rescale": 0.7,
            "solver": "euler",
            "rng": "torch",
            "width": 64,
            "height": 32,
            "num_frames": 13,
            "fps": 24.0,
            "price_per_hour": 2.5,
        }
    ]
    loading = {"num_threads": 3, "verify": "always", "embedding_cache_dir": Path("cache")}
    assert fake.loaded == [("folder", loading)]
    assert names(tmp_path) == ["a.gif", "a.json", "a.mp4", "stills"]
    assert num_frames_of(tmp_path / "a.mp4") == 13
    assert names(tmp_path / "stills") == [f"{i:05d}.png" for i in range(13)]
    with Image.open(tmp_path / "a.gif") as image:
        assert image.size == (64, 32)


@pytest.mark.parametrize(
    "words",
    [
        ("--frames", "5", "--frames", "out"),
        ("--frames", "out", "--num-frames", "5"),
        ("--frames-dir", "out", "--frames", "5"),
        ("--frames-dir", "out", "--num-frames", "5"),
    ],
)
def test_frames_is_a_number_or_a_folder(
    sora_bench: Command, fake: FakeRuntime, tmp_path: Path, words: tuple[str, ...]
) -> None:
    assert sora_bench("run", "a red circle", *words).exit_code == 0
    assert fake.requests[0]["num_frames"] == 5
    assert len(names(tmp_path / "out")) == 5


def test_a_folder_may_have_a_number_for_a_name(sora_bench: Command, fake: FakeRuntime, tmp_path: Path) -> None:
    assert sora_bench("run", "a red circle", "--frames", "./25").exit_code == 0
    assert fake.requests[0]["num_frames"] is None
    assert len(names(tmp_path / "25")) == 9


MISTAKES = {
    "--size 96by96": "--size 96by96 is not WIDTHxHEIGHT in pixels; use one such as 96x96",
    "--size -4x96": "--size -4x96 is not WIDTHxHEIGHT in pixels; use one such as 96x96",
    "--frames 2.5": "--frames 2.5 is not a whole number; use one such as 25",
    "--frames 5 --frames 9": "the number of frames is given twice, 5 and 9; give it once",
    "--frames a --frames-dir b": "the folder of frames is given twice, b and a; give it once",
    "--out clip.avi": "--out clip.avi does not end in .mp4; use such a name (GIF: --gif, PNG: --frames)",
    "--gif a --json a": "--gif and --json are both a; give two names",
    "--negative-prompt \udcff": "--negative-prompt is not valid UTF-8; use a UTF-8 terminal",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_one_line_and_cost_nothing(
    sora_bench: Command, fake: FakeRuntime, tmp_path: Path, words: str
) -> None:
    result = sora_bench("run", "a red circle", *words.split())
    assert (result.exit_code, result.stderr) == (2, f"error: {MISTAKES[words]}\n")
    assert result.stdout == ""
    assert fake.loaded == []
    assert names(tmp_path) == []


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


@pytest.mark.parametrize(
    ("error", "exit_code", "stderr"),
    [
        (InvalidRequest("num_frames = 80\nis not 4k+1"), 2, "error: num_frames = 80 is not 4k+1\n"),
        (BundleError("the bundle is damaged"), 1, "error: the bundle is damaged\n"),
        (EngineError("the engine failed"), 1, "error: the engine failed\n"),
        (Cancelled("cancelled at step 3"), 130, "interrupted\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_failures_leave_nothing(
    sora_bench: Command, fake: FakeRuntime, tmp_path: Path, error: Exception, exit_code: int, stderr: str
) -> None:
    fake.error = error
    result = sora_bench(*("run", "a red circle", "--gif", "a.gif", "--frames", "stills", "--json", "a.json"))
    assert (result.exit_code, result.stderr, result.stdout) == (exit_code, stderr, "")
    assert names(tmp_path) == []


def test_a_bug_is_not_hidden(sora_bench: Command, fake: FakeRuntime, tmp_path: Path) -> None:
    fake.error = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        sora_bench("run", "a red circle")
    assert names(tmp_path) == []


def test_json_file_is_the_receipt(sora_bench: Command, fake: FakeRuntime, tmp_path: Path) -> None:
    assert sora_bench("run", "ein Kreis für 1 €", "--json", "r.json", "--seed", 3).exit_code == 0
    receipt = Receipt.model_validate_json((tmp_path / "r.json").read_bytes())
    assert receipt.request.prompt == "ein Kreis für 1 €"
    assert receipt.request.seed == 3
    assert receipt.seconds.encode_mp4 is not None
    assert receipt.seconds.encode_mp4 > 0
    # Only what was encoded after the last frame was handed over comes on top of the total.
    assert TOTAL_SECONDS < receipt.seconds.total <= TOTAL_SECONDS + receipt.seconds.encode_mp4
    assert receipt.cost.usd_per_clip == pytest.approx(receipt.seconds.total * 0.09 / 3600)
    assert "seconds.encode_mp4" not in receipt.reasons


def test_json_to_stdout_is_json_alone(sora_bench: Command, fake: FakeRuntime) -> None:
    result = sora_bench("run", "a red circle", "--json", "-")
    assert result.exit_code == 0
    assert Receipt.model_validate_json(result.stdout).request.prompt == "a red circle"
    assert result.stderr == ""


def test_repeat(sora_bench: Command, fake: FakeRuntime, tmp_path: Path) -> None:
    result = sora_bench(
        *("run", "a red circle", "--repeat", 3, "--seed", 5, "--out", "x.mp4"),
        *("--gif", "x.gif", "--frames", "x", "--json", "r.json"),
    )
    assert result.exit_code == 0, result.stderr
    assert len(fake.loaded) == 1
    assert [request["seed"] for request in fake.requests] == [5, 6, 7]
    files = [f"x-{i}{ending}" for i in range(3) for ending in ("", ".gif", ".mp4")]
    assert names(tmp_path) == sorted([*files, "r.json"])
    receipts = json.loads((tmp_path / "r.json").read_text())
    assert [receipt["request"]["seed"] for receipt in receipts] == [5, 6, 7]
    for name in ("x-0.mp4", "x-1.mp4", "x-2.mp4", "0/2"):
        assert name in result.stdout


def test_a_repeat_keeps_the_clips_and_receipts_it_made(
    sora_bench: Command, fake: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = fake.generate

    def fails_the_third_time(prompt: str, **more: object) -> object:
        if len(fake.requests) == 2:
            fake.error = EngineError("the third clip failed")
        return generate(prompt, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(fake, "generate", fails_the_third_time)
    assert sora_bench("run", "a red circle", "--repeat", 4, "--json", "r.json").exit_code == 1
    assert names(tmp_path) == ["clip-0.mp4", "clip-1.mp4", "r.json"]
    receipts = json.loads((tmp_path / "r.json").read_text())
    assert [receipt["request"]["seed"] for receipt in receipts] == [0, 1]


PROMPTS = ["a red circle", "many words " * 60, "brackets [bold] and [/nothing]", "word" * 100, "日本語" * 40]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("repeat", [1, 2])
def test_the_receipt_fits_80_columns(sora_bench: Command, fake: FakeRuntime, prompt: str, repeat: int) -> None:
    folder = Path("a-folder-of-a-rather-long-name-" * 2)
    folder.mkdir()
    words = ("--price-per-hour", "98.76", "--repeat", repeat, "--out", folder / "a-longer-name.mp4")
    result = sora_bench("run", prompt, *words)
    assert result.exit_code == 0, result.stderr
    for line in result.stdout.splitlines():
        # CJK characters take two columns.
        assert sum(1 + (character > "\u2fff") for character in line) <= 80
        assert line == line.rstrip()
    assert prompt[:10] in result.stdout
    for text in ("1,234 latent", "300.0 MiB", "98.76 USD an hour"):
        assert text in result.stdout


def test_the_receipt_shows_what_was_measured(sora_bench: Command, fake: FakeRuntime) -> None:
    lines = [" ".join(line.split()) for line in sora_bench("run", "[bold]x[/nope]").stdout.splitlines()]
    assert "prompt [bold]x[/nope]" in lines
    assert "load 0.500 once per runtime, not in total" in lines
    text = "\n".join(lines)
    assert re.search(r"^denoise 3\.000 7\d\.\d% 40 evaluations, 0 skipped, 150\.0 ms a step$", text, re.M)
    assert re.search(r"^vae_decode 0\.900 2\d\.\d%$", text, re.M)
    assert re.search(r"^encode_mp4 0\.\d\d\d \d+\.\d%$", text, re.M)
    cost = re.search(r"^cost (\S+) USD a clip, (\S+) USD a generated second$", text, re.M)
    assert cost is not None
    # 4 s and a little of encoding at 0.09 USD an hour for 9 frames at 12 fps
    assert float(cost[1]) == pytest.approx(4 * 0.09 / 3600, rel=0.2)
    assert float(cost[2]) == pytest.approx(float(cost[1]) / 0.75, rel=0.01)


def test_encoding_is_billed_once(
    sora_bench: Command, fake: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SlowWriter(VideoWriter):
        """2 s while frames come, which the runtime's total holds already, and 1 s to finish."""

        seconds = 0.0

        def write(self, rgb8: Rgb8) -> None:
            super().write(rgb8)
            self.seconds = 2.0

        def __exit__(self, *error: Any) -> None:
            super().__exit__(*error)
            self.seconds = 3.0

    monkeypatch.setattr("sora_runtime.cli.clip.VideoWriter", SlowWriter)
    assert sora_bench("run", "a red circle", "--json", "r.json").exit_code == 0
    receipt = Receipt.model_validate_json((tmp_path / "r.json").read_bytes())
    assert receipt.seconds.encode_mp4 == 3.0
    assert receipt.seconds.total == TOTAL_SECONDS + 1.0
    assert receipt.cost.usd_per_clip == pytest.approx((TOTAL_SECONDS + 1.0) * 0.09 / 3600)
