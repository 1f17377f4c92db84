"""`sora-bench doctor`: what it finds on a machine without a GPU, and that its comparisons can fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gpu.core_double import CoreDouble, SamplerDouble
from gpu.doubles import Gpu
from sora_runtime.bench import doctor as checks
from sora_runtime.bench.doctor import ClipCheck, run_checks
from sora_runtime.bench.doctor_kernels import CASES, compare_graph, compare_sampler
from sora_runtime.bench.doctor_pixels import compare_frames, compare_seams
from sora_runtime.cli.app import command_line
from sora_runtime.engines import tensorrt
from sora_runtime.engines.libraries import CudaStatus, cuda_status

BT601 = np.array([0.299, 0.587, 0.114])
without_gpu = pytest.mark.skipif(cuda_status().reason is None, reason="there is a GPU here")


@without_gpu
def test_without_a_gpu_it_says_what_is_missing_and_has_its_own_exit_code(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(command_line("doctor"), ["doctor", "--out", str(tmp_path / "report")])
    assert result.exit_code == 4
    assert "missing driver: there is no NVIDIA driver" in " ".join(result.output.split())
    record = json.loads((tmp_path / "report/report.json").read_text())
    found = {check["name"]: check for check in record["checks"]}
    assert found["driver"]["status"] == found["device"]["status"] == "missing"
    assert found["clips in bf16"]["status"] == "missing" and found["graph against stream"]["status"] == "missing"
    assert "failed" not in {check["status"] for check in record["checks"]}
    page = (tmp_path / "report/report.html").read_text()
    assert all(check["name"] in page for check in record["checks"]) and "<script" not in page


def test_a_report_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(command_line("doctor"), ["doctor", "--out", str(tmp_path / "file" / "x"), "--no-clips"])
    assert result.exit_code == 1 and result.output.startswith("error: ")


def test_the_sampler_is_compared_bit_by_bit(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tensorrt.current_device()
    found = {case.name: compare_sampler(device, case) for case in CASES}
    assert len(found) == len(CASES) and all(text.endswith("all bits equal") for text in found.values())
    assert "0 evaluations skipped" not in found["step reuse"] and "evaluations skipped" in found["step reuse"]
    assert compare_graph(device) == "one recording, two launches: equal to the stream's"
    step = SamplerDouble._step

    def wrong(self: SamplerDouble, index: int, guided: bool, *rest: object) -> None:
        step(self, index, guided and index != 2, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(SamplerDouble, "_step", wrong)
    with pytest.raises(AssertionError, match=r"\d+ of 50021 latents differ from the CPU's"):
        compare_sampler(device, CASES[1])


def test_pixels_and_seams_are_compared(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tensorrt.current_device()
    assert compare_frames(device) == "46,080 bytes of rgb8: all equal; NV12 within 0 level"
    assert compare_seams(device) == "latents and a seam of two tiles: within rounding of float64"
    monkeypatch.setattr("gpu.core_double.BT709", BT601)
    with pytest.raises(AssertionError, match=r"NV12 is up to \d+ levels off"):
        compare_frames(device)
    monkeypatch.setattr(CoreDouble, "blend", lambda *_, **__: None)
    with pytest.raises(AssertionError, match="a seam differs by"):
        compare_seams(device)


def test_clips_are_held_against_the_cpus(gpu: Gpu, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "cuda_status", lambda: CudaStatus("13.0", ("8.9",), None))
    monkeypatch.setattr(checks, "CudaDevice", tensorrt.current_device)
    monkeypatch.setattr(checks, "CASES", CASES[:2])
    clips = [
        ClipCheck("a double", lambda: bundle, 60.0, 1e-5),
        ClipCheck("one that asks for too much", lambda: bundle, 1e3, 1e-5),
        ClipCheck("one that is never exact enough", lambda: bundle, 60.0, -1.0),
    ]
    found = {check.name: check for check in run_checks(clips)}
    assert found["device"].detail == "NVIDIA GeForce RTX 4090, compute capability 8.9"
    assert found["clips in a double"].status == "passed" and found["graph against stream"].status == "passed"
    assert found["clips in one that asks for too much"].status == "failed"
    assert "1000 are expected" in found["clips in one that asks for too much"].detail
    assert found["clips in a double"].detail.startswith("networks within ")
    assert "from ONNX Runtime; at most -1 is expected" in found["clips in one that is never exact enough"].detail
