"""The README's commands run, its links lead somewhere, its tables are what was recorded."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.run_all import write_readme
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line]


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "XDG_CACHE_HOME": str(folder / "cache")}  # a profile of a busy machine stays in the test
    return subprocess.run(arguments, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run, one after the other: a clone's benchmarks and a picture."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    Image.new("RGB", (64, 64), (0, 0, 128)).save(folder / "first.png")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_runs(command: str, workplace: Path) -> None:
    arguments = shlex.split(command)
    if arguments[0] == "make":  # this test runs inside `make test`: the target must exist and expand
        arguments, folder = ["make", "--dry-run", *arguments[1:]], ROOT
    else:
        folder = workplace
    done = run(arguments, folder)
    assert done.returncode == 0, done.stderr


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    (code,) = blocks("python")
    done = run([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "clip.mp4").stat().st_size > 1000
    assert "cost per clip" in done.stdout


def test_what_make_run_does_ends_with_a_clip_and_a_receipt(tmp_path: Path) -> None:
    recipe = re.search(r"^run: .*\n\t\$\(BIN\)/(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    (tmp_path / "out").mkdir()
    done = run(shlex.split(recipe[1].replace("$(PROMPT)", "a red circle moving left")), tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/clip.mp4").is_file() and (tmp_path / "out/receipt.json").is_file()
    for word in ("tokens", "engine-seconds", "USD a clip"):
        assert word in done.stdout


def test_every_relative_link_leads_to_a_file() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", (ROOT / page).read_text()):
            assert (ROOT / target).exists(), f"{page} links to {target}"


def test_the_tables_are_the_recorded_results() -> None:
    assert write_readme(README) == README


def test_the_version_is_one() -> None:
    import sora_runtime

    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None and version[1] == sora_runtime.__version__
