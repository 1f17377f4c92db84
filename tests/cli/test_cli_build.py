"""`sora-bench build` and `check`: what reaches the builder, and what is said of errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_runtime import Command

import sora_export.build
import sora_export.check
from sora_export.adapter import Adapter
from sora_export.build import BuildRequest, Calibration
from sora_export.check import CheckResult, Measure
from sora_export.engine_from_onnx import EngineOptions
from sora_export.precision import Precision
from sora_export.trajectories import Prompt
from sora_runtime.errors import OutputError

SHAPES = ("--size", "832x480,96x64", "--frames", "25", "--frames", "49")


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> list[BuildRequest]:
    """Takes the builder's place; holds the requests."""
    requests: list[BuildRequest] = []

    def build(request: BuildRequest, progress: Callable[[str], None]) -> Path:
        requests.append(request)
        progress("exporting a graph")
        if request.checkpoint == "full":
            raise OutputError("the disk is full; free some space")
        return Path("/bundles") / request.out

    monkeypatch.setattr(sora_export.build, "build", build)
    return requests


def test_build_passes_height_before_width(sora_bench: Command, builder: list[BuildRequest]) -> None:
    result = sora_bench("build", "checkpoint", "--out", "bundle", *SHAPES, "--name", "mine")
    sizes, frames = [(480, 832), (64, 96)], [25, 49]
    assert builder == [BuildRequest("checkpoint", Path("bundle"), sizes, frames, name="mine")]
    assert (result.exit_code, result.stdout, result.stderr) == (0, "/bundles/bundle\n", "exporting a graph\n")


def test_build_quietly_without_parity(sora_bench: Command, builder: list[BuildRequest]) -> None:
    result = sora_bench("build", "checkpoint", "--out", "b", *SHAPES, "--no-parity", "-q", "--task", "t2v,i2v")
    assert (builder[0].name, builder[0].check_parity, builder[0].tasks) == (None, False, ["t2v", "i2v"])
    assert (result.exit_code, result.output) == (0, "")


def test_tensorrt_is_half_precision_unless_told(sora_bench: Command, builder: list[BuildRequest]) -> None:
    sora_bench("build", "checkpoint", "--out", "b", *SHAPES, "--engine", "tensorrt_rtx")
    assert (builder[0].precision, builder[0].engine) == (Precision.BF16, "tensorrt_rtx")
    assert builder[0].engine_options == EngineOptions("tensorrt_rtx", ("8.9", "12.0"))


def test_adapters_and_few_steps_reach_the_builder(
    sora_bench: Command, builder: list[BuildRequest], tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("high.safetensors", "low.safetensors")]
    for file in files:
        file.touch()
    words = ["--lora", f"{files[0]}=0.8", "--lora", str(files[1]), "--lora-2", f"{files[1]}=0.5"]
    assert sora_bench("build", "checkpoint", "--out", "b", *SHAPES, *words, "--few-step", "lcm:1.0,0.5").exit_code == 0
    second = Adapter(files[1], 0.5, "transformer_2")
    assert builder[0].adapters == (Adapter(files[0], 0.8), Adapter(files[1]), second)
    assert builder[0].few_step == {"sigmas": (1.0, 0.5), "shift": 1.0, "solver": "lcm"}
    result = sora_bench("build", "checkpoint", "--out", "b", *SHAPES, "--lora", "nowhere.safetensors")
    words = "error: there is no adapter nowhere.safetensors; give a .safetensors file or the folder of one\n"
    assert (result.exit_code, result.stderr) == (2, words)


def test_precision_targets_and_calibration_reach_the_builder(
    sora_bench: Command, builder: list[BuildRequest], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# two of them\na red circle\n\na blue square\tstart.png\n")
    words = ["--precision", "fp8", "--engine", "tensorrt_rtx", "--compute-capability", "8.9", "--weights", "inputs"]
    words += ["--calibration", str(prompts), "--calibration-steps", "7", "--engine-cache", "kept"]
    assert sora_bench("build", "checkpoint", "--out", "b", *SHAPES, *words).exit_code == 0
    (request,) = builder
    assert request.precision is Precision.FP8
    assert request.calibration == Calibration(
        [Prompt("a red circle"), Prompt("a blue square", tmp_path / "start.png")], 7
    )
    assert request.engine_options == EngineOptions("tensorrt_rtx", ("8.9",), weights="inputs")
    assert request.engine_cache == Path("kept")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", "96", "--frames", "25"), "--size 96 is not WIDTHxHEIGHT in pixels; use one such as 96x96"),
        (("--size", "96x96", "--frames", "2.5"), "--frames 2.5 is not a whole number; use one such as 25"),
        (
            (*SHAPES, "--compute-capability", "8.9"),
            "--compute-capability 8.9 is for TensorRT; add --engine tensorrt_rtx or leave it out",
        ),
        (
            (*SHAPES, "--calibration-steps", "3"),
            "--calibration-steps 3 goes with --calibration PROMPTS; give both or neither",
        ),
        (
            (*SHAPES, "--calibration", "absent.txt"),
            "prompts file absent.txt cannot be read (No such file or directory); give one prompt a line",
        ),
    ],
)
def test_bad_options_are_one_line(
    sora_bench: Command, builder: list[BuildRequest], words: tuple[str, ...], message: str
) -> None:
    result = sora_bench("build", "checkpoint", "--out", "b", *words)
    assert (result.exit_code, result.stderr) == (2, f"error: {message}\n")
    assert builder == []


@pytest.mark.parametrize("words", [("a" * 300, "--out", "b"), ("checkpoint", "--out", "a" * 300)])
def test_too_long_a_name_is_one_line(sora_bench: Command, builder: list[BuildRequest], words: tuple[str, ...]) -> None:
    result = sora_bench("build", *words, *SHAPES)
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: {'a' * 300} cannot be opened (file name too long); check the path\n",
    )
    assert builder == []


def test_build_errors_are_one_line(sora_bench: Command, builder: list[BuildRequest]) -> None:
    result = sora_bench("build", "full", "--out", "b", *SHAPES, "-q")
    assert (result.exit_code, result.stderr) == (1, "error: the disk is full; free some space\n")


def test_build_plan_builds_nothing(sora_bench: Command, builder: list[BuildRequest]) -> None:
    model = Path(sora_export.build.__file__).parents[2] / "python/sora_runtime/models/wan-pocket"
    words = ["--size", "64x64", "--frames", "25", "--engine", "tensorrt_rtx", "--plan"]
    result = sora_bench("build", str(model), "--out", "b", *words)
    assert result.exit_code == 0, result.stderr
    assert builder == [] and not Path("b").exists()
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["export", "engines", "all"]
    assert all(len(line) <= 80 for line in lines) and "estimated" in result.stdout


@pytest.mark.parametrize("package", ["torch", "diffusers.models"])
def test_build_says_what_to_install(sora_bench: Command, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    class Missing:
        """An importer that knows nothing, as on a machine without the export packages."""

        def find_spec(self, name: str, *_: object) -> None:
            if name == "sora_export.build":
                raise ModuleNotFoundError(f"No module named '{package}'", name=package)

    monkeypatch.delitem(sys.modules, "sora_export.build")
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


@pytest.mark.parametrize(("psnr", "code"), [(41.0, 0), (12.5, 1)])
def test_check_fails_over_budget(sora_bench: Command, monkeypatch: pytest.MonkeyPatch, psnr: float, code: int) -> None:
    def check_bundle(folder: Path, **options: Any) -> CheckResult:
        assert folder.name == "wan-pocket" and options["adherence_prompts"] == 0
        assert options["record"] is False  # the package's own bundle stays as it is
        clip = {"psnr": Measure(psnr, 30.0, at_least=True), "ssim": Measure(0.98, None)}
        loss = {"colour": Measure(-0.01, -0.02, at_least=True)}
        return CheckResult("int8", {"transformer.onnx": Measure(0.01, None)}, {"a red circle": clip}, loss)

    monkeypatch.setattr(sora_export.check, "check_bundle", check_bundle)
    result = sora_bench("check", "wan-pocket", "--adherence", "0")
    assert result.exit_code == code
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "transformer.onnx 1.0e-02 none" in rows
    assert f"a red circle {psnr:.1f} 0.980 {'OVER' if code else 'ok'}" in rows
    assert "colour -1.0% -2% ok" in rows
    said = "error: wan-pocket is over its error budget (psnr of 'a red circle': 12.5 against 30); build it in a higher"
    assert result.stderr.startswith(said) if code else not result.stderr
