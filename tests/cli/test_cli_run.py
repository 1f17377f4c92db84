"""`sora-bench run`: options reach the runtime, and mistakes and failures leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_runtime import Command, FakeRuntime, names, num_frames_of
from PIL import Image

from sora_runtime.errors import BudgetExceeded, BundleError, Cancelled, EngineError, InvalidRequest, OutputError
from sora_runtime.runtime import Runtime
from sora_runtime.video import VideoWriter

DEFAULTS = {
    "prompt": "a red circle",
    "image": None,
    "negative_prompt": None,
    "seed": 0,
    "num_inference_steps": None,
    "sigmas": None,
    "timesteps": None,
    "guidance_scale": None,
    "guidance_rescale": None,
    "solver": None,
    "rng": "philox",
    "width": None,
    "height": None,
    "num_frames": None,
    "fps": None,
    "price_per_hour": None,
}


def test_defaults(sora_bench: Command, fake: FakeRuntime, tmp_path: Path) -> None:
    result = sora_bench("run", "a red circle")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""  # not a terminal: no bars
    assert fake.requests == [DEFAULTS]
    loading = {"engine": "onnxruntime", "num_threads": None, "verify": "once", "embedding_cache_dir": None}
    assert fake.loaded == [("wan-pocket", loading)]
    assert names(tmp_path) == ["clip.mp4"]
    assert num_frames_of(tmp_path / "clip.mp4") == 9


def test_every_option_reaches_the_runtime(sora_bench: Command, fake: FakeRuntime, tmp_path: Path) -> None:
    result = sora_bench(
        *("run", "a red circle", "--model", "folder", "--image", "first.png", "--negative-prompt", "blur", "--seed", 7),
        *("--steps", 5, "--guidance-scale", 1.5, "--guidance-rescale", 0.7, "--solver", "euler"),
        *("--rng", "torch", "--size", "64x32", "--frames", 13, "--fps", 24, "--price-per-hour", 2.5),
        *("--engine", "openvino", "--threads", 3, "--embedding-cache", "cache", "--verify", "always"),
        *("--out", "a.mp4"),
        *("--frames", "stills", "--gif", "a.gif", "--json", "a.json", "--quiet"),
    )
    assert (result.exit_code, result.output) == (0, "")
    assert fake.requests == [
        {
            **DEFAULTS,
            "image": Path("first.png"),
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
    loading = {"engine": "openvino", "num_threads": 3, "verify": "always", "embedding_cache_dir": Path("cache")}
    assert fake.loaded == [("folder", loading)]
    assert names(tmp_path) == ["a.gif", "a.json", "a.mp4", "stills"]
    assert num_frames_of(tmp_path / "a.mp4") == 13
    assert names(tmp_path / "stills") == [f"{i:05d}.png" for i in range(13)]
    with Image.open(tmp_path / "a.gif") as image:
        assert image.size == (64, 32)


def test_a_preset_is_loaded_with_and_a_budget_is_asked_with(sora_bench: Command, fake: FakeRuntime) -> None:
    assert sora_bench("run", "a red circle", "--preset", "draft").exit_code == 0
    words = ("--max-usd", 0.5, "--deadline", 30, "--price-per-hour", 2)
    assert sora_bench("run", "a red circle", *words).exit_code == 0
    loading = {"engine": "onnxruntime", "num_threads": None, "verify": "once", "embedding_cache_dir": None}
    assert fake.loaded == [("wan-pocket", {**loading, "preset": "draft"}), ("wan-pocket", loading)]
    budget = {"max_usd": 0.5, "deadline_s": 30.0, "price_per_hour": 2.0}
    assert fake.requests == [DEFAULTS, {**DEFAULTS, **budget}]


def test_levels_are_numbers_with_commas(sora_bench: Command, fake: FakeRuntime) -> None:
    assert sora_bench("run", "a red circle", "--sigmas", "1.0, 0.75,0.5", "--sigmas", "0.25").exit_code == 0
    assert sora_bench("run", "a red circle", "--timesteps", "1000,757,522").exit_code == 0
    assert [request["sigmas"] for request in fake.requests] == [[1.0, 0.75, 0.5, 0.25], None]
    assert [request["timesteps"] for request in fake.requests] == [None, [1000.0, 757.0, 522.0]]
    result = sora_bench("run", "a red circle", "--sigmas", "1.0,half")
    assert (result.exit_code, result.stderr) == (2, "error: --sigmas half is not a number; use one such as 0.75\n")


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


@pytest.mark.parametrize(
    ("error", "exit_code", "stderr"),
    [
        (InvalidRequest("num_frames = 80\nis not 4k+1"), 2, "error: num_frames = 80 is not 4k+1\n"),
        (BundleError("the bundle is damaged"), 1, "error: the bundle is damaged\n"),
        (BudgetExceeded("stopped after 2 of 6 steps"), 3, "error: stopped after 2 of 6 steps\n"),
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


def test_a_frame_rate_no_file_can_have_costs_nothing(sora_bench: Command, fake: FakeRuntime) -> None:
    result = sora_bench("run", "a red circle", "--fps", "0.0001")
    assert (result.exit_code, result.stderr) == (2, "error: fps = 0.0001 is out of range; use 1 to 240\n")
    assert fake.requests == []


def test_what_the_runtime_refuses_at_load_is_one_line(
    sora_bench: Command, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **loading: object) -> None:
        raise InvalidRequest(f"num_threads = {loading['num_threads']} is out of range; use 1 to 64")

    monkeypatch.setattr(Runtime, "load", load)
    result = sora_bench("run", "a red circle", "--threads", 10**20)
    assert (result.exit_code, result.stderr, result.stdout) == (
        2,
        f"error: num_threads = {10**20} is out of range; use 1 to 64\n",
        "",
    )


def test_a_bug_is_not_hidden(sora_bench: Command, fake: FakeRuntime, tmp_path: Path) -> None:
    fake.error = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        sora_bench("run", "a red circle")
    assert names(tmp_path) == []


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


def test_seeds(sora_bench: Command, fake: FakeRuntime, tmp_path: Path) -> None:
    result = sora_bench("run", "a red circle", "--seeds", "4,9", "--seeds", 2, "--out", "x.mp4", "--json", "r.json")
    assert result.exit_code == 0, result.stderr
    assert [request["seed"] for request in fake.requests] == [4, 9, 2]
    assert names(tmp_path) == ["r.json", "x-0.mp4", "x-1.mp4", "x-2.mp4"]
    assert [receipt["request"]["seed"] for receipt in json.loads((tmp_path / "r.json").read_text())] == [4, 9, 2]


def test_one_of_seeds_is_a_clip_as_any_other(sora_bench: Command, fake: FakeRuntime, tmp_path: Path) -> None:
    assert sora_bench("run", "a red circle", "--seeds", 4).exit_code == 0
    assert [request["seed"] for request in fake.requests] == [4] and names(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seeds", "1,x"), "--seeds x is not a whole number"),
        (("--seeds", ","), "--seeds names no seed"),
        (("--seeds", "1,2", "--repeat", 2), "leave out --repeat"),
        (("--seeds", "1,2", "--seed", 3), "leave out --seed"),
    ],
)
def test_seeds_that_make_no_sense(
    sora_bench: Command, fake: FakeRuntime, tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    result = sora_bench("run", "a red circle", *words)
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())
    assert not fake.loaded and names(tmp_path) == []


def test_frames_are_kept_only_where_they_are_written_twice(
    sora_bench: Command, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, kept = fake.generate, []

    def noted(prompt: str, **more: object) -> object:
        kept.append(more["keep_frames"])
        return generate(prompt, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(fake, "generate", noted)
    for more in ((), ("--gif", "x.gif"), ("--frames", "folder")):
        assert sora_bench("run", "a red circle", *more).exit_code == 0
    assert kept == [False, True, True]


def test_a_disk_that_fills_while_encoding_leaves_nothing(
    sora_bench: Command, fake: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, __: object) -> None:
        raise OutputError("cannot write clip.mp4: no space left on device; free some space")

    monkeypatch.setattr(VideoWriter, "write", full)
    fake.sleep_seconds = 0.1
    result = sora_bench("run", "a red circle")
    assert result.exit_code == 1 and "no space left" in result.stderr
    assert names(tmp_path) == []
