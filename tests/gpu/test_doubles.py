"""The doubles against the real libraries, which import without a GPU: every name and argument that they have."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from gpu.doubles import Buffer, Event, EventOptions, Gpu, Stream
from gpu.driver_double import Driver
from gpu.engine_doubles import Context, CudaEngine, tensorrt_double

_TYPES = ("CUstreamCaptureMode", "long")
core = pytest.importorskip("cuda.core")
trt = pytest.importorskip("tensorrt_rtx")


def stub(class_name: str) -> dict[str, list[str]]:
    """Arguments of every method of a class of cuda.core, from the stubs that it ships."""
    for file in Path(core.__file__).parent.rglob("*.pyi"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and node.name == class_name:
                methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
                found = {
                    each.name: [a.arg for a in (*each.args.posonlyargs, *each.args.args, *each.args.kwonlyargs)]
                    for each in methods
                }
                if found:
                    return found
    raise AssertionError(f"cuda.core has no {class_name}")


def arguments(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("double", "name", "methods"),
    [
        (Gpu().Device, "Device", ["set_current", "create_stream", "allocate"]),
        (Stream, "Stream", ["sync", "record", "wait"]),
        (Event, "Event", ["sync"]),
        (Buffer, "Buffer", ["copy_to", "close", "from_handle"]),
        (Gpu().LegacyPinnedMemoryResource, "LegacyPinnedMemoryResource", ["allocate"]),
    ],
)
def test_methods_of_cuda_core_take_what_the_doubles_take(double: Any, name: str, methods: list[str]) -> None:
    real = getattr(core, name)
    for method in methods:
        assert hasattr(real, method), f"{name}.{method}"
        try:
            known = arguments(getattr(real, method))
        except ValueError:  # compiled, without a signature
            known = stub(name)[method]
        assert set(arguments(getattr(double, method))) <= set(known), f"{name}.{method}"


def test_calls_of_the_driver_take_what_the_doubles_take() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    for name in (name for name in vars(Driver) if name.startswith("cu")):
        known = re.findall(r"\w+(?=[,:)])", (getattr(driver, name).__doc__ or "").splitlines()[0])
        assert arguments(getattr(Driver, name))[1:] == [word for word in known if word not in _TYPES], name
    assert int(driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED) == 2
    assert all(hasattr(core.EventOptions(), name) for name in vars(EventOptions()))


def test_attributes_of_cuda_core_are_there() -> None:
    for name, attributes in {
        "Device": ["name", "compute_capability"],
        "Stream": ["handle"],
        "Buffer": ["handle", "size"],
    }.items():
        for attribute in attributes:
            assert hasattr(getattr(core, name), attribute), f"{name}.{attribute}"


def documented(function: Any) -> list[str]:
    """Arguments of a method of pybind11, from the first line of its documentation that has them."""
    line = re.search(rf"{function.__name__}\((.*?)\) ->", function.__doc__ or "", re.DOTALL)
    assert line is not None, function
    return re.findall(r"(\w+):", line[1])


@pytest.mark.parametrize(
    ("double", "name", "methods"),
    [
        (
            Context,
            "IExecutionContext",
            ["set_tensor_address", "set_device_memory", "execute_async_v3", "is_stream_capturable"],
        ),
        (
            CudaEngine,
            "ICudaEngine",
            [
                *("get_tensor_name", "get_tensor_mode", "get_tensor_shape", "get_tensor_dtype"),
                *("create_execution_context", "load_weights_async", "unload_weights"),
            ],
        ),
        (tensorrt_double(Gpu()).Runtime, "Runtime", ["deserialize_cuda_engine"]),
        (tensorrt_double(Gpu()).Refitter, "Refitter", ["__init__", "refit_cuda_engine"]),
        (tensorrt_double(Gpu()).OnnxParserRefitter, "OnnxParserRefitter", ["__init__", "refit_from_file"]),
    ],
)
def test_methods_of_tensorrt_take_what_the_doubles_take(double: Any, name: str, methods: list[str]) -> None:
    real = getattr(trt, name)
    for method in methods:
        assert hasattr(real, method), f"{name}.{method}"
        if "Overloaded" in (getattr(real, method).__doc__ or ""):
            assert all(
                f"{argument}:" in getattr(real, method).__doc__ for argument in arguments(getattr(double, method))[1:]
            )
            continue
        assert set(arguments(getattr(double, method))) <= set(documented(getattr(real, method))), f"{name}.{method}"


def test_attributes_and_enumerations_of_tensorrt_are_there() -> None:
    for attribute in (
        "device_memory_size_v2",
        "num_io_tensors",
        "streamable_weights_size",
        "weight_streaming_budget_v2",
        "weights_loaded",
    ):
        assert hasattr(trt.ICudaEngine, attribute), attribute
    assert hasattr(trt.Runtime, "defer_weights_loading")
    assert all(hasattr(trt.IStreamReaderV2, name) for name in ("read", "seek"))
    assert hasattr(trt.ICudaEngine, "get_weight_streaming_automatic_budget")
    double = tensorrt_double(Gpu())
    for name in ("TensorIOMode", "ExecutionContextAllocationStrategy", "SeekPosition"):
        for member in (each for each in vars(getattr(double, name)) if not each.startswith("_")):
            assert hasattr(getattr(trt, name), member), f"{name}.{member}"
    assert trt.Logger(trt.Logger.ERROR) is not None
    for name in ("FLOAT", "HALF", "BF16", "INT8", "INT32", "INT64", "BOOL", "UINT8"):
        assert hasattr(trt.DataType, name), name
