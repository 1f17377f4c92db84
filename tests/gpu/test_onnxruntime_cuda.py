"""ONNX Runtime on a device through a double of it: a clip equals the CPU's, and runs are put on the device's stream."""

from __future__ import annotations

import inspect
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from gpu.doubles import Gpu
from gpu.engine_doubles import BindingDouble, OnnxRuntimeDouble, SessionDouble
from sora_runtime import Runtime
from sora_runtime.bundle import find_bundle
from sora_runtime.engines import onnxruntime_cuda, tensorrt
from sora_runtime.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine
from sora_runtime.engines.registry import ONNXRUNTIME_GPU, engine_for
from sora_runtime.errors import EngineError, InvalidRequest

ASK: dict[str, Any] = {"prompt": "a red circle moving left", "num_inference_steps": 3, "seed": 4}


@pytest.fixture
def library(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> OnnxRuntimeDouble:
    """onnxruntime-gpu, on the machine with one GPU."""
    double, device = OnnxRuntimeDouble(gpu), tensorrt.current_device()
    monkeypatch.setattr(onnxruntime_cuda, "current_device", lambda: device)
    monkeypatch.setattr(OnnxRuntimeCudaEngine.__init__, "__kwdefaults__", {"plans": None, "library": double})
    return double


@pytest.mark.parametrize("engine", ONNXRUNTIME_GPU)
def test_a_clip_is_the_cpus(
    gpu: Gpu, library: OnnxRuntimeDouble, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with Runtime.load("wan-pocket") as runtime:
        expected = runtime.generate(**ASK).frames
    with Runtime.load("wan-pocket", engine=engine) as runtime:
        for _ in range(3):
            clip = runtime.generate(**ASK)
            np.testing.assert_array_equal(clip.frames, expected)
        assert clip.receipt.engine.name == engine and clip.receipt.machine.gpu == "NVIDIA GeForce RTX 4090"
        assert clip.receipt.engine.version == ort.__version__
    log = Counter(gpu.log)
    assert log["launch graph"] == 0 and log["execute"] >= 3 * (2 * 3 + 6)
    first = library.sessions[0].providers[0]
    assert first[0] == onnxruntime_cuda.PROVIDERS[engine]
    if engine == "onnxruntime_tensorrt":
        assert Path(first[1]["trt_engine_cache_path"]).is_dir() and library.sessions[0].providers[1][0].startswith(
            "CUDA"
        )


def test_a_graph_that_would_run_in_part_on_the_cpu_is_refused(gpu: Gpu, library: OnnxRuntimeDouble) -> None:
    library.on_cpu = True
    with (
        Runtime.load("wan-pocket", engine="onnxruntime_cuda") as runtime,
        pytest.raises(EngineError, match=r"for onnxruntime_cuda .*assigned to the default CPU EP.*; use the"),
    ):
        runtime.generate(**ASK)


def test_a_provider_that_the_library_went_on_without_is_named(gpu: Gpu, library: OnnxRuntimeDouble) -> None:
    library.drops = "TensorrtExecutionProvider"
    with (
        Runtime.load("wan-pocket", engine="onnxruntime_tensorrt") as runtime,
        pytest.raises(EngineError, match="without TensorrtExecutionProvider; see what it lacks in its log"),
    ):
        runtime.generate(**ASK)


def test_a_library_without_the_provider_is_named(gpu: Gpu, library: OnnxRuntimeDouble) -> None:
    library.providers = ["CPUExecutionProvider"]
    with (
        Runtime.load("wan-pocket", engine="onnxruntime_cuda") as runtime,
        pytest.raises(EngineError, match="has no CUDAExecutionProvider; pip uninstall onnxruntime, then pip install"),
    ):
        runtime.generate(**ASK)


def test_a_graph_that_is_none_is_named(gpu: Gpu, library: OnnxRuntimeDouble, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"ONNX Runtime cannot load '.*none\.onnx' for onnxruntime_cuda \("):
        OnnxRuntimeCudaEngine(tmp_path / "none.onnx", "onnxruntime_cuda", device=tensorrt.current_device())


def test_a_failing_run_is_one_sentence(gpu: Gpu, library: OnnxRuntimeDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = find_bundle("wan-pocket") / "text_encoder.onnx"
    engine = OnnxRuntimeCudaEngine(graph, "onnxruntime_cuda", device=tensorrt.current_device())
    binding = engine.bind({name: spec.zeros() for name, spec in {**engine.inputs, **engine.outputs}.items()})

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA failure 2: out of memory\nmore")

    monkeypatch.setattr(SessionDouble, "run_with_iobinding", fail)
    with pytest.raises(EngineError, match=r"failed at 'text_encoder\.onnx' \(CUDA failure 2: out of memory\); use a"):
        binding.run()


def test_who_runs_what() -> None:
    assert engine_for("onnxruntime", "onnxruntime_cuda", "fp32") == "onnxruntime_cuda"
    assert engine_for("tensorrt_rtx", "onnxruntime_tensorrt", "bf16") == "onnxruntime_tensorrt"
    with pytest.raises(InvalidRequest, match="runs bundles in fp32, fp16, bf16 and this one is in int8; leave it out"):
        engine_for("onnxruntime", "onnxruntime_cuda", "int8")


def test_the_double_takes_what_the_library_takes() -> None:
    def arguments(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert set(arguments(OnnxRuntimeDouble.InferenceSession)) <= set(arguments(ort.InferenceSession.__init__))
    assert "enable_fallback" in inspect.getsource(ort.InferenceSession.__init__)
    assert arguments(SessionDouble.run_with_iobinding) == arguments(ort.InferenceSession.run_with_iobinding)
    for name in ("bind_input", "bind_output"):
        assert arguments(getattr(BindingDouble, name)) == arguments(getattr(ort.IOBinding, name))
    for name in ("get_inputs", "get_outputs", "io_binding", "get_provider_options"):
        assert hasattr(ort.InferenceSession, name)
    # Session options and run options are the library's own.
