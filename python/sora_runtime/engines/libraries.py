"""Which engine libraries are here, what each can do, and what keeps it from doing more."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_DRIVER = "libcuda.so.1"
_NEEDS_GPU = "install an NVIDIA driver on a machine with a GPU"
INSTALL_OPENVINO = "pip install openvino"
_GPU_PACKAGE = "pip uninstall onnxruntime, then pip install onnxruntime-gpu: they share one module"


@dataclass(frozen=True)
class LibraryStatus:
    """One way to run engines here."""

    name: str
    version: str | None
    """None: not installed."""
    runs: bool
    builds: bool
    builds_for: tuple[str, ...]
    """Compute capabilities it builds for without such a GPU; empty: only for the device it runs on."""
    reason: str | None
    """What keeps it from running, or from building; None: nothing."""
    remedy: str | None


@dataclass(frozen=True)
class CudaStatus:
    """The driver and its devices."""

    driver: str | None
    """Newest CUDA version that the driver supports, ``13.0``; None: no driver."""
    compute_capabilities: tuple[str, ...]
    reason: str | None


def cuda_status() -> CudaStatus:
    """Ask the driver itself (CUDA driver API, section 6): no package is needed for that."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return CudaStatus(None, (), f"there is no NVIDIA driver ({_DRIVER} is not found)")
    version, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    name = f"{version.value // 1000}.{version.value % 1000 // 10}"
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        why = f"the NVIDIA driver reports error {code}" if code else "the NVIDIA driver sees no GPU"
        return CudaStatus(name, (), why)
    return CudaStatus(name, tuple(_capability(driver, index) for index in range(count.value)), None)


def _capability(driver: ctypes.CDLL, index: int) -> str:
    device, parts = ctypes.c_int(), [ctypes.c_int(), ctypes.c_int()]
    driver.cuDeviceGet(ctypes.byref(device), index)
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    for attribute, part in zip((75, 76), parts, strict=True):
        driver.cuDeviceGetAttribute(ctypes.byref(part), attribute, device)
    return ".".join(str(part.value) for part in parts)


def engine_libraries(cuda: CudaStatus | None = None) -> list[LibraryStatus]:
    """Every library this package knows, in the order in which it is to be preferred on a CPU machine.

    Imports what is installed, as only that tells whether it works; deserialises and builds nothing.
    """
    cuda = cuda_status() if cuda is None else cuda
    return [*_onnxruntime(cuda), _openvino(), _tensorrt("tensorrt_rtx", cuda), _tensorrt("tensorrt", cuda)]


def _onnxruntime(cuda: CudaStatus) -> list[LibraryStatus]:
    module, why = _import("onnxruntime")
    if module is None:
        return [
            LibraryStatus(f"onnxruntime {kind}", None, False, False, (), why, "pip install onnxruntime")
            for kind in ("CPU", "CUDA", "TensorRT")
        ]
    providers = set(module.get_available_providers())
    version = str(module.__version__)
    cpu = LibraryStatus("onnxruntime CPU", version, True, True, (), None, None)
    return [cpu, *(_provider(kind, version, providers, cuda) for kind in ("CUDA", "TensorRT"))]


def _provider(kind: str, version: str, providers: set[str], cuda: CudaStatus) -> LibraryStatus:
    name = f"onnxruntime {kind}"
    provider = {"CUDA": "CUDAExecutionProvider", "TensorRT": "TensorrtExecutionProvider"}[kind]
    if provider not in providers:
        reason = "this onnxruntime was built without it"
        return LibraryStatus(name, None, False, False, (), reason, _GPU_PACKAGE)
    if cuda.reason:
        return LibraryStatus(name, version, False, False, (), cuda.reason, _NEEDS_GPU)
    if kind == "TensorRT" and not _loads("libnvinfer.so.10", "libnvinfer.so.11"):
        reason = "libnvinfer, the library of TensorRT, is not found"
        return LibraryStatus(name, version, False, False, (), reason, "pip install tensorrt")
    return LibraryStatus(name, version, True, True, (), None, None)


def _openvino() -> LibraryStatus:
    """Its CPU plugin alone: it compiles a graph whenever it loads one."""
    module, why = _import("openvino")
    if module is None:
        return LibraryStatus("openvino CPU", None, False, False, (), why, INSTALL_OPENVINO)
    return LibraryStatus("openvino CPU", str(module.__version__).partition("-")[0], True, True, (), None, None)


def _tensorrt(name: str, cuda: CudaStatus) -> LibraryStatus:
    pip = {"tensorrt": "pip install tensorrt", "tensorrt_rtx": "pip install tensorrt-rtx"}[name]
    module, why = _import(name)
    if module is None:
        return LibraryStatus(name, None, False, False, (), why, pip)
    members = getattr(getattr(module, "ComputeCapability", None), "__members__", {})
    digits = [member.removeprefix("SM") for member in members if member.startswith("SM")]
    targets = tuple(f"{value[:-1]}.{value[-1]}" for value in digits)
    version = str(module.__version__)
    if cuda.reason:
        return LibraryStatus(name, version, False, bool(targets), targets, cuda.reason, _NEEDS_GPU)
    here = cuda.compute_capabilities
    if targets and not set(here) & set(targets):
        reason = f"it has no kernels for this GPU (compute capability {', '.join(here)})"
        return LibraryStatus(name, version, False, True, targets, reason, "use tensorrt on this machine")
    return LibraryStatus(name, version, True, True, targets, None, None)


def _import(name: str) -> tuple[Any, str | None]:
    """The module, or None and why not."""
    if importlib.util.find_spec(name) is None:
        return None, "not installed"
    try:
        return importlib.import_module(name), None
    except Exception as error:  # half-installed bindings raise ImportError, OSError, RuntimeError, FileNotFoundError
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return None, f"installed, but cannot be imported ({first})"


def _loads(*names: str, load: Callable[[str], object] = ctypes.CDLL) -> bool:
    for name in names:
        try:
            load(name)
        except OSError:
            continue
        return True
    return False
