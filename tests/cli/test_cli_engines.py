"""`sora-bench engines` as a shell sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sora_runtime import _core
from sora_runtime.cli.engines import engines
from sora_runtime.engines import libraries
from sora_runtime.engines.libraries import CudaStatus, LibraryStatus
from sora_runtime.engines.store import EngineKey, EngineStore

KEY = EngineKey("a" * 64, "b" * 64, "tensorrt_rtx", "1.7.1", ("8.9",))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Runs the command with an empty cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    app = typer.Typer()
    app.command()(engines)
    return lambda *words: CliRunner().invoke(app, list(words), catch_exceptions=False)


def pretend(monkeypatch: pytest.MonkeyPatch, cuda: CudaStatus, *found: LibraryStatus) -> None:
    monkeypatch.setattr(libraries, "cuda_status", lambda: cuda)
    monkeypatch.setattr(libraries, "engine_libraries", lambda cuda: list(found))


def words_of(text: str) -> str:
    """The text without what folding did to it."""
    return " ".join(text.split())


def test_this_machine(command: Callable[..., Any]) -> None:
    result = command()
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    providers = ("onnxruntime CPU", "onnxruntime CUDA", "onnxruntime TensorRT")
    for name in (*providers, "openvino CPU", "tensorrt_rtx", "tensorrt"):
        assert name in result.stdout
    assert "0 engines" in result.stdout


def test_reasons_and_remedies_are_shown(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    runs = LibraryStatus("onnxruntime CPU", "1.31.1", True, True, (), None, None)
    builds = LibraryStatus("tensorrt_rtx", "1.7.1.116", False, True, ("8.9", "12.0"), "no driver", "get one")
    absent = LibraryStatus("tensorrt", None, False, False, (), "not installed", "pip install tensorrt")
    pretend(monkeypatch, CudaStatus(None, (), "no driver"), runs, builds, absent)
    lines = [line.split() for line in command().stdout.splitlines()]
    assert ["onnxruntime", "CPU", "1.31.1", "yes", "this", "machine"] in lines
    assert ["tensorrt_rtx", "1.7.1.116", "no", "8.9,", "12.0"] in lines
    assert ["tensorrt", "not", "installed", "no", "-"] in lines
    assert ["tensorrt_rtx", "no", "driver;", "get", "one"] in lines
    assert ["tensorrt", "not", "installed;", "pip", "install", "tensorrt"] in lines
    assert ["GPU", "none:", "no", "driver"] in lines


def test_a_gpu_and_a_cache_are_described(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, CudaStatus("13.0", ("8.9",), None))
    EngineStore().get_or_build(KEY, lambda plan: plan.write_bytes(b"x" * 2048) and {"what": "t.onnx"}).close()
    text = words_of(command().stdout)
    assert "compute capability 8.9; driver for CUDA 13.0" in text
    assert "1 engines, 2.0 KiB of at most 64.0 GiB" in text


def test_json(command: Callable[..., Any], tmp_path: Path) -> None:
    EngineStore().get_or_build(KEY, lambda plan: plan.write_bytes(b"x") and {"what": "t.onnx"}).close()
    record = json.loads(command("--json").stdout)
    assert set(record) == {"cuda", "libraries", "own_int8_operators", "cache"}
    assert record["own_int8_operators"] is _core.has_amx()
    assert record["libraries"][0]["name"] == "onnxruntime CPU" and record["libraries"][0]["runs"] is True
    (entry,) = record["cache"]["engines"]
    assert entry["what"] == "t.onnx" and entry["key"]["compute_capabilities"] == ["8.9"]
    assert record["cache"]["folder"] == str(tmp_path / "sora-runtime" / "engines")
