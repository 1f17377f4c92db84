"""Which engine libraries are here: the answer follows from what is installed and what the driver says."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sora_runtime.engines import libraries
from sora_runtime.engines.libraries import CudaStatus, LibraryStatus, cuda_status, engine_libraries

NO_DRIVER = CudaStatus(None, (), "there is no NVIDIA driver")
ADA = CudaStatus("13.0", ("8.9",), None)
HOPPER = CudaStatus("13.0", ("9.0",), None)


def install(monkeypatch: pytest.MonkeyPatch, modules: dict[str, Any]) -> None:
    """Pretends that exactly these libraries are installed; an exception is what importing one raises."""

    def find(name: str) -> object | None:
        return modules.get(name)

    def load(name: str) -> Any:
        if isinstance(modules[name], Exception):
            raise modules[name]
        return modules[name]

    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setattr(importlib, "import_module", load)


def onnxruntime(*providers: str) -> ModuleType:
    module: Any = ModuleType("onnxruntime")
    module.__version__ = "1.31.1"
    module.get_available_providers = lambda: [*providers, "CPUExecutionProvider"]
    return module  # type: ignore[no-any-return]


def tensorrt(*members: str) -> SimpleNamespace:
    names = dict.fromkeys(("NONE", "CURRENT", *members))
    return SimpleNamespace(__version__="1.7.1", ComputeCapability=SimpleNamespace(__members__=names))


def by_name(cuda: CudaStatus) -> dict[str, LibraryStatus]:
    return {library.name: library for library in engine_libraries(cuda)}


def test_every_library_that_cannot_run_says_why_and_what_to_do() -> None:
    found = engine_libraries()
    assert [library.name for library in found] == [
        "onnxruntime CPU",
        "onnxruntime CUDA",
        "onnxruntime TensorRT",
        "openvino CPU",
        "tensorrt_rtx",
        "tensorrt",
    ]
    assert found[0].runs and found[0].builds
    for library in found:
        assert library.runs == (library.reason is None) == (library.remedy is None)


def test_nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {})
    for library in engine_libraries(ADA):
        assert (library.version, library.runs, library.builds, library.reason) == (None, False, False, "not installed")


def test_without_a_driver_tensorrt_rtx_builds_but_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"tensorrt_rtx": tensorrt("SM75", "SM89", "SM120"), "tensorrt": tensorrt()})
    rtx, server = by_name(NO_DRIVER)["tensorrt_rtx"], by_name(NO_DRIVER)["tensorrt"]
    assert (rtx.runs, rtx.builds, rtx.builds_for) == (False, True, ("7.5", "8.9", "12.0"))
    assert (server.runs, server.builds, server.builds_for) == (False, False, ())
    assert rtx.reason == server.reason == "there is no NVIDIA driver"


def test_a_gpu_without_kernels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"tensorrt_rtx": tensorrt("SM89"), "tensorrt": tensorrt()})
    assert by_name(ADA)["tensorrt_rtx"].runs and by_name(ADA)["tensorrt"].runs
    rtx = by_name(HOPPER)["tensorrt_rtx"]
    assert not rtx.runs and rtx.builds
    assert rtx.reason == "it has no kernels for this GPU (compute capability 9.0)"


def test_half_installed_bindings_are_told_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"tensorrt": FileNotFoundError("libnvinfer.so.11\nmore")})
    server = by_name(ADA)["tensorrt"]
    assert server.reason == "installed, but cannot be imported (libnvinfer.so.11)"


def test_providers_of_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"onnxruntime": onnxruntime()})
    assert by_name(ADA)["onnxruntime CPU"].runs
    assert by_name(ADA)["onnxruntime CUDA"].reason == "this onnxruntime was built without it"
    install(monkeypatch, {"onnxruntime": onnxruntime("CUDAExecutionProvider", "TensorrtExecutionProvider")})
    assert by_name(NO_DRIVER)["onnxruntime CUDA"].reason == "there is no NVIDIA driver"
    assert by_name(ADA)["onnxruntime CUDA"].runs
    monkeypatch.setattr(libraries, "_loads", lambda *names: False)
    assert by_name(ADA)["onnxruntime TensorRT"].reason == "libnvinfer, the library of TensorRT, is not found"
    monkeypatch.setattr(libraries, "_loads", lambda *names: True)
    assert by_name(ADA)["onnxruntime TensorRT"].runs


def test_openvino_runs_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"openvino": SimpleNamespace(__version__="2026.4.1-22982-e213a147257")})
    assert by_name(NO_DRIVER)["openvino CPU"] == LibraryStatus("openvino CPU", "2026.4.1", True, True, (), None, None)
    install(monkeypatch, {})
    assert by_name(NO_DRIVER)["openvino CPU"].remedy == "pip install openvino"


class Driver:
    """The calls of libcuda that are used, as ctypes sees them."""

    def __init__(self, devices: list[tuple[int, int]], error: int = 0) -> None:
        self.devices, self.error = devices, error

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 13010
        return 0

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.error

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.devices)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = self.devices[device.value][attribute - 75]
        return 0


@pytest.mark.parametrize(
    ("driver", "want"),
    [
        (Driver([(8, 9), (12, 0)]), CudaStatus("13.1", ("8.9", "12.0"), None)),
        (Driver([]), CudaStatus("13.1", (), "the NVIDIA driver sees no GPU")),
        (Driver([], error=100), CudaStatus("13.1", (), "the NVIDIA driver reports error 100")),
    ],
)
def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch, driver: Driver, want: CudaStatus) -> None:
    monkeypatch.setattr(libraries.ctypes, "CDLL", lambda name: driver)
    assert cuda_status() == want


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(libraries.ctypes, "CDLL", missing)
    assert cuda_status() == CudaStatus(None, (), "there is no NVIDIA driver (libcuda.so.1 is not found)")


def test_importing_the_module_imports_no_library() -> None:
    import subprocess

    code = "import sys, sora_runtime.engines.libraries; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"tensorrt", "tensorrt_rtx", "onnxruntime", "openvino", "numpy"}.isdisjoint(done.stdout.split())
