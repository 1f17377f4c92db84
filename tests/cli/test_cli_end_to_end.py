"""`sora-bench` with nothing faked: a random checkpoint is built, inspected and run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from fake_runtime import Command, default_signals
from PIL import Image
from typer.testing import CliRunner

from sora_runtime.cli.app import command_line
from sora_runtime.receipt import Receipt

TINY_CHECKPOINT = Path(__file__).parent.parent / "export"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of 48x32 and 9 frames, made by `sora-bench build`."""
    for package in ("torch", "diffusers", "transformers", "onnxscript"):
        pytest.importorskip(package, reason=f"`build` needs {package}")
    folder = tmp_path_factory.mktemp("end_to_end")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TINY_CHECKPOINT))
        from tiny_checkpoint import save_tiny_checkpoint

        save_tiny_checkpoint(folder / "checkpoint")
    words = ["build", str(folder / "checkpoint"), "--out", str(folder / "bundle")]
    words += ["--size", "48x32", "--frames", "9", "--name", "tiny", "--quiet"]
    result = CliRunner().invoke(command_line(), words, catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    return folder / "bundle"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_the_built_bundle_can_be_inspected(sora_bench: Command, bundle: Path) -> None:
    record = json.loads(sora_bench("inspect", bundle, "--json", "--verify", "always").stdout)
    bucket = record["components"]["transformer"]["buckets"][0]
    assert (record["name"], bucket["width"], bucket["height"], bucket["num_frames"]) == ("tiny", 48, 32, 9)
    shown = sora_bench("inspect", bundle).stdout
    assert bucket["graph"] in shown
    assert "not measured" not in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_a_clip_and_its_receipt(sora_bench: Command, bundle: Path, tmp_path: Path) -> None:
    words = ("run", "a red circle", "--model", bundle, "--json", "r.json", "--gif", "c.gif", "--frames", "f")
    result = sora_bench(*words, "--steps", 3, "--seed", 7, "--size", "48x32", "--frames", 9)
    assert result.exit_code == 0, result.stderr
    assert names(tmp_path) == ["c.gif", "clip.mp4", "f", "r.json"]
    receipt = Receipt.model_validate_json((tmp_path / "r.json").read_bytes())
    assert (receipt.request.seed, receipt.evaluations.made, len(receipt.seconds.per_step)) == (7, 6, 3)
    seconds = receipt.seconds
    assert seconds.encode_mp4 is not None and 0 < seconds.encode_mp4 < seconds.total
    # The mp4 is encoded beside the decoder: what of it passed after the last frame comes on top, the rest does not.
    stages = seconds.tokenize + seconds.text_encode + seconds.denoise + seconds.vae_decode
    assert seconds.total >= stages - 1e-6
    stills = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "f").iterdir())])
    with av.open(str(tmp_path / "clip.mp4")) as container:
        movie = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert movie.shape == stills.shape == (9, 32, 48, 3)
    # Random weights give noise, whose chroma 4:2:0 blurs: compare luma, frame by frame.
    luma = np.array([0.2126, 0.7152, 0.0722])
    same, shifted = (
        correlation(movie @ luma, stills @ luma),
        correlation(movie[1:] @ luma, stills[:-1] @ luma),
    )
    assert same > 0.95 > shifted


def test_a_repeat_finds_the_prompt_in_the_cache(sora_bench: Command, bundle: Path) -> None:
    result = sora_bench("run", "a red circle", "--model", bundle, "--steps", 2, "--repeat", 2, "--json", "-")
    first, second = json.loads(result.stdout)
    assert first["embedding_cache"] == {"hits": 0, "misses": 2}
    assert second["embedding_cache"] == {"hits": 2, "misses": 0}
    assert (first["request"]["seed"], second["request"]["seed"]) == (0, 1)


@pytest.mark.parametrize("words", ["--threads 0", "--threads 1000000", "--fps 0.0001", "--fps 241"])
def test_numbers_out_of_range_are_one_sentence(sora_bench: Command, bundle: Path, tmp_path: Path, words: str) -> None:
    result = sora_bench("run", "a red circle", "--model", bundle, *words.split())
    assert (result.exit_code, result.stdout) == (2, "")
    option, value = words.split()
    name = {"--threads": "num_threads", "--fps": "fps"}[option]
    assert result.stderr.startswith(f"error: {name} = {value} is ")
    assert result.stderr.count("\n") == 1
    assert names(tmp_path) == []


def test_a_size_without_a_graph_is_a_bad_request(sora_bench: Command, bundle: Path, tmp_path: Path) -> None:
    result = sora_bench("run", "a red circle", "--model", bundle, "--size", "32x48")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "48x32" in result.stderr
    assert names(tmp_path) == []


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_compiled_loop_can_be_interrupted(
    bundle: Path, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    # The cache's folder gets its file when the text encoder is done: the next thing is the loop.
    code = "from sora_runtime.cli.app import main; main()"
    words = ["run", "a red circle", "--model", str(bundle), "--steps", "1000", "--embedding-cache", "cache"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words, "--repeat", "1000"],
        cwd=tmp_path,
        env=dict(os.environ),
        stderr=subprocess.PIPE,
        preexec_fn=default_signals,
    ) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("cache/*.embed")):
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline, "it never began"
            time.sleep(0.01)
        time.sleep(0.3)  # into the loop, or a clip that is being written: both must clean up
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (exit_code, b"interrupted\n")
    assert not list(tmp_path.glob(".*"))
