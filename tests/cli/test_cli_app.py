"""`sora-bench` as a shell sees it: version, help, start-up, and what signals do."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_runtime import Command, default_signals

import sora_runtime

HERE = Path(__file__).parent
SLEEPS = "import sys, fake_runtime; fake_runtime.main_that_sleeps(float(sys.argv.pop(1)))"


def environment() -> dict[str, str]:
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TERM": "xterm", "COLUMNS": "80"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_version(sora_bench: Command) -> None:
    result = sora_bench("--version")
    assert (result.exit_code, result.stdout) == (0, f"sora-bench {sora_runtime.__version__}\n")


@pytest.mark.parametrize("command", ["run", "build", "inspect"])
def test_help_fits_80_columns(sora_bench: Command, command: str) -> None:
    result = sora_bench(command, "--help")
    assert result.exit_code == 0
    assert all(len(line.rstrip()) <= 80 for line in result.stdout.splitlines())


@pytest.mark.parametrize("words", [["run"], ["nothing"], ["run", "x", "--nothing"], ["run", "x", "--seed", "y"]])
def test_usage_errors_exit_with_2(sora_bench: Command, words: list[str]) -> None:
    assert sora_bench(*words).exit_code == 2


def test_starting_up_imports_nothing_heavy() -> None:
    code = "import sys, sora_runtime.cli.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "av", "PIL", "onnxruntime", "tokenizers", "pydantic", "torch", "sora_runtime._core"}
    assert heavy.isdisjoint(done.stdout.split())


def wait_for_partial_file(process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not any(".partial-" in name for name in names(folder)):
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline, "it never began to write"
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_clean_up(tmp_path: Path, number: signal.Signals, exit_code: int) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"an older clip")
    command = [sys.executable, "-c", SLEEPS, "120", "run", "a red circle", "--json", "r.json"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=default_signals,
    ) as process:
        wait_for_partial_file(process, tmp_path)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr, stdout) == (exit_code, b"interrupted\n", b"")
    assert names(tmp_path) == ["clip.mp4"]
    assert (tmp_path / "clip.mp4").read_bytes() == b"an older clip"


def test_an_ignored_hangup_stays_ignored(tmp_path: Path) -> None:
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); import sora_runtime.cli.app as a\n"
        "try: a.main()\nfinally: assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN"
    )
    done = subprocess.run([sys.executable, "-c", code, "--version"], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_bars_show_on_a_terminal_only(tmp_path: Path) -> None:
    terminal, stderr = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPS, "1", "run", "a red circle"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=stderr,
    ) as process:
        os.close(stderr)
        shown = b""
        while select.select([terminal], [], [], 60)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # the other end was closed
                break
        assert process.wait(60) == 1
    os.close(terminal)
    for text in (b"tokenize", b"text_encode", b"denoise", b"20/20", b"error: nobody stopped me"):
        assert text in shown
    assert b"\x1b[?25h" in shown, "the cursor must be visible again"


def test_a_prompt_the_terminal_cannot_show(tmp_path: Path) -> None:
    code = (
        "import pytest, fake_runtime\nfrom sora_runtime.cli.app import main\n"
        "fake_runtime.install(fake_runtime.FakeRuntime(), pytest.MonkeyPatch())\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "日本 €"],
        cwd=tmp_path,
        env={**environment(), "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"?? ?" in done.stdout
