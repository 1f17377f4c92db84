"""Fixtures: the command in this process, and a fake runtime behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_runtime import Command, FakeRuntime, install
from typer.testing import CliRunner

from sora_runtime.cli.app import command_line


@pytest.fixture
def sora_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `sora-bench` with the given words in a folder of its own; a bug's exception propagates."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *words: CliRunner().invoke(command_line(), [str(word) for word in words], catch_exceptions=False)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """A fake in the place of the real runtime."""
    return install(FakeRuntime(), monkeypatch)
