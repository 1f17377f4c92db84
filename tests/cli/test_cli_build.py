"""`sora-bench build`: what reaches the builder, and what is said of errors."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_runtime import Command

from sora_runtime.errors import OutputError


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Takes the place of `sora_export.bundle_from_checkpoint`; holds the calls."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def build_bundle(*arguments: Any, progress: Any, **options: Any) -> Path:
        calls.append((arguments, options))
        progress("exporting a graph")
        if str(arguments[0]) == "full":
            raise OutputError("the disk is full; free some space")
        return Path("/bundles") / arguments[1]

    module = ModuleType("sora_export.bundle_from_checkpoint")
    module.build_bundle = build_bundle  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sora_export", ModuleType("sora_export"))
    monkeypatch.setitem(sys.modules, "sora_export.bundle_from_checkpoint", module)
    return calls


SHAPES = ("--size", "832x480", "--size", "96x64", "--frames", "25", "--frames", "49")


def test_build_passes_height_before_width(sora_bench: Command, builder: list[Any]) -> None:
    result = sora_bench("build", "checkpoint", "--out", "bundle", *SHAPES, "--name", "mine")
    arguments = (Path("checkpoint"), Path("bundle"), [(480, 832), (64, 96)], [25, 49])
    assert builder == [(arguments, {"name": "mine", "check_parity": True})]
    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        "/bundles/bundle\n",
        "exporting a graph\n",
    )


def test_build_quietly_without_parity(sora_bench: Command, builder: list[Any]) -> None:
    result = sora_bench("build", "checkpoint", "--out", "b", *SHAPES, "--no-parity", "-q")
    assert builder[0][1] == {"name": None, "check_parity": False}
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.parametrize("words", [("a" * 300, "--out", "b"), ("checkpoint", "--out", "a" * 300)])
def test_too_long_a_name_is_one_line(sora_bench: Command, builder: list[Any], words: tuple[str, ...]) -> None:
    result = sora_bench("build", *words, *SHAPES)
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: {'a' * 300} cannot be opened (file name too long); check the path\n",
    )
    assert builder == []


def test_build_errors_are_one_line(sora_bench: Command, builder: list[Any]) -> None:
    result = sora_bench("build", "full", "--out", "b", *SHAPES, "-q")
    assert (result.exit_code, result.stderr) == (1, "error: the disk is full; free some space\n")
    result = sora_bench("build", "checkpoint", "--out", "b", "--size", "96", "--frames", "25")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: --size 96 is not WIDTHxHEIGHT in pixels; use one such as 96x96\n",
    )
    assert len(builder) == 1


@pytest.mark.parametrize("package", ["torch", "diffusers.models"])
def test_build_says_what_to_install(sora_bench: Command, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    class Missing:
        """An importer that knows nothing, as on a machine without the export packages."""

        def find_spec(self, name: str, *_: object) -> None:
            if name == "sora_export.bundle_from_checkpoint":
                raise ModuleNotFoundError(f"No module named '{package}'", name=package)

    monkeypatch.delitem(sys.modules, "sora_export.bundle_from_checkpoint", raising=False)
    package_module = ModuleType("sora_export")
    package_module.__path__ = []
    monkeypatch.setitem(sys.modules, "sora_export", package_module)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    result = sora_bench("build", "checkpoint", "--out", "b", *SHAPES)
    needed = package.partition(".")[0]
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: build needs {needed}, which is not installed; pip install 'sora-runtime[export]'\n",
    )
