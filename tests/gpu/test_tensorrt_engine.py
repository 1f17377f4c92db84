"""TensorRT's engines through doubles of its libraries: a clip equals the CPU's, and no contract is broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu.conftest import build_double
from gpu.doubles import Broken, Buffer, Gpu, Operation
from gpu.engine_doubles import tensorrt_double
from sora_runtime import Runtime
from sora_runtime.bundle import Bundle
from sora_runtime.cost.prices import usd_per_hour
from sora_runtime.engines import cuda, tensorrt
from sora_runtime.engines.cuda import CudaDevice
from sora_runtime.engines.engine import TensorSpec
from sora_runtime.engines.store import EngineStore
from sora_runtime.engines.tensorrt import TensorRtEngine, open_tensorrt
from sora_runtime.errors import EngineError, InvalidRequest

ASK = {"prompt": "a red circle moving left", "num_inference_steps": 3, "seed": 4}


def test_a_clip_on_the_device_is_the_cpus(gpu: Gpu, bundle: Path) -> None:
    with Runtime.load("wan-pocket") as runtime:
        expected = runtime.generate(**ASK)
    with Runtime.load(bundle) as runtime:
        first = runtime.generate(**ASK)
        taken = sum(line.startswith("allocate") for line in gpu.log)
        again = runtime.generate(**ASK)
        np.testing.assert_array_equal(first.frames, expected.frames)
        np.testing.assert_array_equal(again.frames, expected.frames)
        assert first.receipt.machine.gpu == "NVIDIA GeForce RTX 4090" and first.receipt.machine.gpu_count == 1
        cost = first.receipt.cost
        assert cost.usd_per_hour == usd_per_hour("rtx-4090").usd_per_hour and cost.price_is_default
        assert cost.price_source.startswith("default for 'NVIDIA GeForce RTX 4090': ")
        assert first.receipt.engine.name == "tensorrt_rtx" and first.receipt.evaluations.made == 6
    # Memory is taken for the first clip and none after it.
    assert sum(line.startswith("allocate") for line in gpu.log) == taken


def test_a_gpu_without_a_price_asks_for_one_before_the_work(
    gpu: Gpu, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda.current_device(), "name", "NVIDIA Something New")
    with Runtime.load(bundle) as runtime:
        with pytest.raises(InvalidRequest, match="the price of 'NVIDIA Something New' is not in the catalogue; give"):
            runtime.generate(**ASK)
        assert "execute" not in gpu.log
        assert runtime.generate(**ASK, price_per_hour=2.0).receipt.cost.usd_per_hour == 2.0


def test_engines_lie_in_one_room(gpu: Gpu, bundle: Path) -> None:
    device = tensorrt.current_device()
    small = device.room(100)
    assert device.room(50) is small and device.moves == 0
    large = device.room(1000)
    assert large.size >= 1000 and gpu.closed == [small] and device.moves == 1
    loaded, bindings = Bundle.load(bundle), []
    for graph in ("text_encoder.onnx", "transformer.64x64x25.onnx", "text_encoder.onnx"):
        engine = open_tensorrt(loaded.path(graph), loaded.fingerprint(graph), "tensorrt_rtx")
        arrays = {name: spec.zeros() for name, spec in {**engine.inputs, **engine.outputs}.items()}
        bindings.append((engine.bind(arrays), arrays))
    found = []
    for binding, arrays in (*bindings, *bindings):  # the room has moved since the first was there
        binding.run()
        found.append({name: array.copy() for name, array in arrays.items()})
    for before, after in zip(found[:3], found[3:], strict=True):
        for name, array in before.items():
            np.testing.assert_array_equal(array, after[name])
    beside_weights = [buffer for buffer in gpu.buffers if not buffer.host and buffer.size > gpu.weight_bytes]
    assert beside_weights == [device.room(1)]
    device.leave()
    assert all(buffer.host or buffer.size == gpu.weight_bytes for buffer in gpu.buffers)


def test_an_engine_that_was_not_built_for_this_device_is_named(gpu: Gpu, bundle: Path, tmp_path: Path) -> None:
    loaded = Bundle.load(bundle)
    graph = "text_encoder.onnx"
    place = loaded.path(graph), loaded.fingerprint(graph), "tensorrt_rtx"
    elsewhere = CudaDevice(core=Gpu((12, 0)), driver=object())
    with pytest.raises(
        EngineError,
        match=r"for tensorrt_rtx 1\.7\.1 and compute capability 12\.0.*there is one of "
        r"tensorrt_rtx 1\.7\.1 for 8\.9; run `sora-bench build` with --engine tensorrt_rtx ",
    ):
        open_tensorrt(*place, device=elsewhere)
    build_double(loaded, graph, "1.6.0", "12.0")
    with pytest.raises(EngineError, match=r"1\.6\.0 for 12\.0"):
        open_tensorrt(*place, device=elsewhere)
    with pytest.raises(EngineError, match=r"no engine of 'text_encoder\.onnx'"):
        open_tensorrt(*place, store=EngineStore(tmp_path / "empty"))


def test_a_plan_that_was_changed_is_not_loaded(gpu: Gpu, bundle: Path) -> None:
    loaded, graph = Bundle.load(bundle), "text_encoder.onnx"
    for folder, manifest in EngineStore().entries():
        if manifest.what == graph:
            (folder / "engine.plan").write_bytes(b"something else")
    with pytest.raises(EngineError, match=r"no engine of 'text_encoder\.onnx'"):
        open_tensorrt(loaded.path(graph), loaded.fingerprint(graph), "tensorrt_rtx")


def test_what_the_library_refuses_is_one_sentence(gpu: Gpu, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, library = tensorrt.current_device(), tensorrt_double(gpu)
    with pytest.raises(
        EngineError, match=r"cannot load the engine of 'a\.onnx' on NVIDIA GeForce RTX 4090; build it again"
    ):
        TensorRtEngine(b"no plan", "a.onnx", device=device, library=library)
    graph = Bundle.load(bundle).path("text_encoder.onnx")
    engine = TensorRtEngine(str(graph).encode(), "a.onnx", device=device, library=library)
    arrays = {name: spec.zeros() for name, spec in {**engine.inputs, **engine.outputs}.items()}
    with pytest.raises(EngineError, match=r"'a\.onnx' cannot be bound: "):
        engine.bind(dict(list(arrays.items())[1:]))
    binding = engine.bind(arrays)
    monkeypatch.setattr(binding._own.context, "execute_async_v3", lambda stream_handle: False)
    with pytest.raises(EngineError, match=r"tensorrt_rtx refused to run 'a\.onnx'"):
        binding.run()


def test_a_gpu_bundle_is_run_by_no_other_engine(gpu: Gpu, bundle: Path) -> None:
    with pytest.raises(
        InvalidRequest, match="engine = 'openvino' does not run a bundle that was built for tensorrt_rtx"
    ):
        Runtime.load(bundle, engine="openvino")


def test_without_a_device_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    with pytest.raises(
        EngineError, match=r"CUDA device 1 cannot be used \(CUDA_ERROR_INVALID_DEVICE.*install an NVIDIA"
    ):
        CudaDevice(1, core=gpu, driver=gpu.driver)
    monkeypatch.setitem(__import__("sys").modules, "cuda.core", None)
    with pytest.raises(EngineError, match=r"cuda\.core cannot be imported .*; pip install cuda-core"):
        cuda._import("cuda.core")


# The doubles themselves: each of these mistakes is seen.


def copied(gpu: Gpu) -> tuple[CudaDevice, Any, Buffer]:
    device = CudaDevice(core=gpu, driver=gpu.driver)
    staged = device.pinned(TensorSpec((4,), np.dtype(np.float32)))
    memory = device.allocate(staged.buffer.size)
    staged.array[:] = 1
    staged.buffer.copy_to(memory, stream=device.stream)
    return device, staged, memory


def test_the_double_sees_memory_that_is_overwritten_too_early() -> None:
    device, staged, _ = copied(Gpu())
    staged.array[:] = 2
    with pytest.raises(Broken, match="the host changed what 'copy host to device' was still to read"):
        device.stream.sync()


def test_the_double_sees_memory_that_is_given_back_too_early() -> None:
    device, _, memory = copied(Gpu())
    with pytest.raises(Broken, match="given back while a stream may still use it"):
        memory.close()
    memory.close(device.stream)  # in the stream's order it is right


def test_the_double_sees_what_is_read_before_it_is_there() -> None:
    device, _, memory = copied(Gpu())
    result = device.pinned(TensorSpec((4,), np.dtype(np.float32)))
    memory.copy_to(result.buffer, stream=device.stream)
    assert not (result.array == 1).any()
    device.wait()
    assert (result.array == 1).all()


def test_the_double_sees_streams_that_nothing_orders() -> None:
    device, staged, memory = copied(Gpu())
    result = device.pinned(TensorSpec((4,), np.dtype(np.float32)))
    with pytest.raises(Broken, match="meets 'copy host to device' of another stream with nothing between them"):
        memory.copy_to(result.buffer, stream=device.copies)
    device.copies.wait(device.mark())
    memory.copy_to(result.buffer, stream=device.copies)
    with pytest.raises(Broken, match="'copy host to device' meets 'copy device to host' of another stream"):
        staged.buffer.copy_to(memory, stream=device.stream)  # before what is there has left
    device.copies.sync()
    assert (result.array == 1).all()
    staged.buffer.copy_to(memory, stream=device.stream)  # the host has seen it leave
    device.wait()


def test_the_double_sees_an_engine_without_its_addresses(gpu: Gpu, bundle: Path) -> None:
    device, library = tensorrt.current_device(), tensorrt_double(gpu)
    graph = Bundle.load(bundle).path("text_encoder.onnx")
    engine = library.Runtime(library.Logger(1)).deserialize_cuda_engine(str(graph).encode())
    context = engine.create_execution_context("USER_MANAGED")
    with pytest.raises(Broken, match="no address was set for"):
        context.execute_async_v3(device.stream.handle)
    for name in engine.tensors:
        context.set_tensor_address(name, device.allocate(engine.bytes_of(name)).handle)
    with pytest.raises(Broken, match="without its scratch memory"):
        context.execute_async_v3(device.stream.handle)
    with pytest.raises(Broken, match="reaches memory that is not there"):
        device.stream.put(Operation("copy", lambda: None, [(12, 4)], []))
