"""A build that is killed, meets a full disk or has company: one sentence or a clean rebuild, nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sora_runtime import Bundle, Runtime
from sora_runtime.errors import BundleError

WORDS = ["--size", "48x32", "--frames", "9", "--no-parity"]


def start(checkpoint: Path, out: Path, *more: str, limit: int | None = None) -> subprocess.Popen[str]:
    """`sora-bench build` in a process of its own; `limit` bounds the size of a file it may write, in bytes."""

    def prepare() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "sora_runtime.cli.app", "build", str(checkpoint), "--out", str(out), *WORDS, *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare, env={**os.environ}
    )


def kill_at(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            process.kill()
            break
    else:
        pytest.fail(f"the build never said {words!r}")
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "exporting vae_decoder"),
        (("--precision", "int8"), "exporting vae_decoder"),
        (("--precision", "int8"), "converting transformer"),
    ],
    ids=["export", "float32 graphs of a conversion", "conversion"],
)
def test_a_killed_build_leaves_no_bundle_and_the_next_one_is_clean(
    plain: Path, tmp_path: Path, more: tuple[str, ...], words: str
) -> None:
    out = tmp_path / "bundle"
    kill_at(start(plain, out, *more), words)
    with pytest.raises(BundleError):
        Bundle.load(out)
    process = start(plain, out, *more)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert hidden(out) == [] and hidden(tmp_path) == []
    with Runtime.load(out, verify="always") as runtime:
        assert runtime.generate("a red circle moves left", num_inference_steps=1).frames.shape == (9, 32, 48, 3)


@pytest.mark.parametrize("more", [(), ("--precision", "int8")], ids=["fp32", "int8"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(plain: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    process = start(plain, tmp_path / "bundle", *more, limit=20_000)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    last = said.splitlines()[-1]
    assert last.startswith("error: ") and "File too large" in last and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_an_older_bundle_outlives_a_killed_build(plain_bundle: Path, plain: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(plain_bundle, tmp_path / "bundle"))
    before = (out / "bundle.json").read_bytes()
    kill_at(start(plain, out), "exporting vae_decoder")
    assert (out / "bundle.json").read_bytes() == before
    assert Bundle.load(out, verify="always").name == "tiny"


def test_a_flipped_byte_in_graph_weights_or_quantised_weights_is_refused(plain: Path, tmp_path: Path) -> None:
    process = start(plain, tmp_path / "bundle", "--precision", "int8", "-q")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    files = json.loads((tmp_path / "bundle/bundle.json").read_text())["files"]
    graph = next(name for name in files if name.startswith("transformer."))
    for name in (graph, "int8/transformer.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        assert name in files
        copy = Path(shutil.copytree(tmp_path / "bundle", tmp_path / "copy"))
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(BundleError, match=f"{name}' does not match its sha256"):
            Runtime.load(copy)
        shutil.rmtree(copy)
