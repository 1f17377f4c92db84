"""A machine with one GPU, and a bundle that was built for it; both made up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gpu.core_double import CoreDouble
from gpu.doubles import Gpu
from gpu.engine_doubles import tensorrt_double
from sora_runtime import _core
from sora_runtime.bundle import Bundle, find_bundle
from sora_runtime.engines import cuda, tensorrt
from sora_runtime.engines.cuda import CudaDevice
from sora_runtime.engines.store import EngineKey, EngineStore, sha256_of


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A machine with one GPU of compute capability 8.9, and TensorRT-RTX."""
    gpu = Gpu()
    device = CudaDevice(core=gpu, driver=gpu.driver)
    for module in (cuda, tensorrt):
        monkeypatch.setattr(module, "current_device", lambda: device)
    monkeypatch.setattr(_core, "cuda", CoreDouble(gpu), raising=False)
    monkeypatch.setattr(tensorrt, "_module", lambda library: tensorrt_double(gpu))
    return gpu


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """wan-pocket as if it was built for TensorRT-RTX, its engines in the user's store."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "pocket-rtx"
    shutil.copytree(find_bundle("wan-pocket"), folder)
    file = folder / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"engine": "tensorrt_rtx"}))
    loaded = Bundle.load(folder)
    for graph in (name for name in loaded.manifest.files if name.endswith(".onnx")):
        build_double(loaded, graph)
    return folder


def build_double(
    bundle: Bundle, graph: str, version: str = "1.7.1", target: str = "8.9", plan: str | None = None, **report: Any
) -> None:
    """An engine in the user's store; its plan says which graph the double evaluates, the bundle's if not another."""
    path, content = bundle.path(graph), plan or str(bundle.path(graph))
    key = EngineKey(sha256_of(path), bundle.fingerprint(graph), "tensorrt_rtx", version, (target,))

    def write(plan: Path) -> dict[str, Any]:
        plan.write_bytes(content.encode())
        return {"what": graph, "report": report}

    EngineStore().get_or_build(key, write).close()
