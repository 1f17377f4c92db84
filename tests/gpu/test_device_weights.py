"""Weights that take turns on a device: a clip is the CPU's whatever fits, and nothing is read that is not there."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu.conftest import build_double
from gpu.doubles import Broken, Gpu
from gpu.engine_doubles import SCRATCH, STRIPPED, tensorrt_double
from sora_export.shared_weights import weights_as_inputs
from sora_runtime import Runtime
from sora_runtime.bundle import Bundle
from sora_runtime.engines import tensorrt
from sora_runtime.engines.device_weights import weight_turns
from sora_runtime.engines.onnxruntime import OnnxRuntimeEngine
from sora_runtime.engines.store import EngineStore
from sora_runtime.engines.tensorrt import TensorRtEngine, open_tensorrt
from sora_runtime.errors import EngineError

ASK: dict[str, Any] = {"prompt": "a red circle moving left", "num_inference_steps": 4, "seed": 4}
WEIGHTS = 1 << 20  # bytes of each network's
TRANSFORMER = "transformer.64x64x25.onnx"
FILES = "model.safetensors"


@pytest.fixture
def experts(bundle: Path) -> Path:
    """The bundle with its transformer as two experts."""
    file = bundle / "bundle.json"
    manifest = json.loads(file.read_text())
    manifest["facts"]["boundary_ratio"] = 0.8
    graph = {"height": 64, "width": 64, "num_frames": 25, "task": "t2v", "graph": TRANSFORMER}
    manifest["components"]["transformer_2"] = {"buckets": [graph]}
    file.write_text(json.dumps(manifest))
    return bundle


def clip(runtime: Runtime, gpu: Gpu) -> tuple[Any, list[str]]:
    """Frames, and what happened with weights, experts' evaluations and graphs."""
    gpu.log.clear()
    frames = runtime.generate(**ASK).frames
    seen = ("load weights", "unload weights", "execute", "replay execute", "launch graph")
    return frames, [line for line in gpu.log if line in seen]


def room_of(gpu: Gpu, bundle: Path) -> tuple[Any, int]:
    """A clip's frames and the bytes that it needs beside weights."""
    gpu.weight_bytes = WEIGHTS
    with Runtime.load(bundle) as runtime:
        frames = runtime.generate(**ASK).frames
        return frames, tensorrt.current_device().room(1).size


def test_what_fits_is_brought_once(gpu: Gpu, experts: Path) -> None:
    with Runtime.load("wan-pocket") as runtime:
        expected = runtime.generate(**ASK).frames
    gpu.weight_bytes = WEIGHTS
    with Runtime.load(experts) as runtime:
        frames, log = clip(runtime, gpu)
        np.testing.assert_array_equal(frames, expected)
        assert log.count("load weights") == 5  # text encoder, experts and the decoder's two
        # The second expert's come when a whole row of the first one's is on the stream, all others before the clip.
        loads = [index for index, line in enumerate(log) if line == "load weights"]
        assert log[loads[3] : loads[4] + 2] == ["load weights", "execute", "execute", "load weights", "execute"]
        for _ in range(2):
            frames, log = clip(runtime, gpu)
            np.testing.assert_array_equal(frames, expected)
            assert "load weights" not in log and log.count("launch graph") == 1


@pytest.mark.parametrize(("fit", "graphs"), [(1, 0), (2, 0), (3, 0), (5, 2)])
def test_networks_take_turns_where_they_do_not_fit_together(gpu: Gpu, experts: Path, fit: int, graphs: int) -> None:
    expected, room = room_of(gpu, experts)
    gpu.capacity = room + fit * WEIGHTS + WEIGHTS // 2
    launched = 0
    with Runtime.load(experts) as runtime:
        for _ in range(3):
            frames, log = clip(runtime, gpu)
            np.testing.assert_array_equal(frames, expected)
            counted = Counter(log)
            launched += counted["launch graph"]
            assert gpu.held() <= gpu.capacity
            if fit < 4:
                # In each clip both experts and the decoder's two are brought, whatever is there from before.
                assert counted["load weights"] >= 4 - fit + 1 and counted["unload weights"] > 0
    assert launched == graphs


def test_the_second_expert_comes_while_the_first_one_runs_if_both_fit(gpu: Gpu, experts: Path) -> None:
    _, room = room_of(gpu, experts)
    for fit, before in ((2, True), (1, False)):
        gpu.capacity = room + fit * WEIGHTS + WEIGHTS // 2
        with Runtime.load(experts) as runtime:
            clip(runtime, gpu)
            _, log = clip(runtime, gpu)
        evaluations = [index for index, line in enumerate(log) if line == "execute"]
        loads = [index for index, line in enumerate(log) if line == "load weights"]
        second = loads[1]  # after the first expert's
        rows_of_the_first = 2  # of guidance's two branches each
        assert (evaluations[1] < second < evaluations[2]) is before
        assert (second > evaluations[2 * rows_of_the_first - 1]) is not before


def test_weights_that_fit_nowhere_are_named(gpu: Gpu, bundle: Path) -> None:
    gpu.weight_bytes, gpu.capacity = 1 << 30, 1 << 29
    with (
        Runtime.load(bundle) as runtime,
        pytest.raises(
            EngineError,
            match=r"the weights of 'text_encoder\.onnx' cannot be brought to NVIDIA GeForce",
        ),
    ):
        runtime.generate(**ASK)


def test_a_room_that_finds_no_memory_takes_that_of_weights(gpu: Gpu, bundle: Path) -> None:
    loaded, device = Bundle.load(bundle), tensorrt.current_device()
    gpu.weight_bytes, gpu.capacity = WEIGHTS, 3 * WEIGHTS
    engine = open_tensorrt(loaded.path("text_encoder.onnx"), loaded.fingerprint("text_encoder.onnx"), "tensorrt_rtx")
    engine.ready()
    moves = device.moves
    device.room(WEIGHTS)
    assert engine.loaded and (device.moves, device.unloads) == (moves, 0)
    device.room(5 * WEIGHTS // 2)
    assert not engine.loaded and (device.moves, device.unloads) == (moves + 1, 1)
    with pytest.raises(EngineError, match="has no 4,194,304 bytes of memory"):
        device.room(4 * WEIGHTS)


def test_a_room_that_is_too_large_gives_way_to_weights(gpu: Gpu, bundle: Path) -> None:
    with Runtime.load(bundle) as runtime:
        expected, _ = clip(runtime, gpu)
        (stages,) = runtime._stages.values()
        decoding = stages.decoder._chunks.memory.end + SCRATCH  # type: ignore[union-attr]
        (prepared,) = stages.denoiser._prepared.values()  # type: ignore[union-attr]
        denoising = prepared.layout.end + SCRATCH
    assert decoding > denoising
    del stages, prepared  # which keep engines
    # The decoder's room and the transformer fit one after the other, never together.
    gpu.capacity = decoding + 4 * gpu.weight_bytes
    gpu.weights_of[TRANSFORMER] = gpu.capacity - denoising
    with Runtime.load(bundle) as runtime:
        for _ in range(3):
            frames, log = clip(runtime, gpu)
            np.testing.assert_array_equal(frames, expected)
            assert "launch graph" not in log  # nothing is warm


def opened(bundle: Path, graph: str) -> TensorRtEngine:
    loaded = Bundle.load(bundle)
    return open_tensorrt(loaded.path(graph), loaded.fingerprint(graph), "tensorrt_rtx")


def test_contexts_and_plans_that_bring_their_weights_find_memory_too(gpu: Gpu, bundle: Path) -> None:
    gpu.weight_bytes, gpu.capacity = WEIGHTS, 2 * WEIGHTS
    first, second = (opened(bundle, graph) for graph in ("text_encoder.onnx", TRANSFORMER))
    first.ready()
    gpu.context_bytes = 2 * WEIGHTS
    assert second.context() is not None and not first.loaded
    gpu.context_bytes = 0
    first.ready()
    second.ready()
    gpu.defers = False
    third = opened(bundle, "vae_decoder.64x64.next.onnx")  # which comes with its weights
    assert third.loaded and not first.loaded and second.loaded
    third.ahead()
    gpu.context_bytes = 4 * WEIGHTS
    with pytest.raises(EngineError, match=r"'vae_decoder.* cannot be run on NVIDIA GeForce RTX 4090: its memory"):
        third.context()


def test_weights_that_cannot_be_taken_off_are_not_asked_for_ever(gpu: Gpu, bundle: Path) -> None:
    gpu.weight_bytes, gpu.capacity = WEIGHTS, WEIGHTS
    first, second = (opened(bundle, graph) for graph in ("text_encoder.onnx", TRANSFORMER))
    first.ready()
    gpu.unloads = False
    with pytest.raises(EngineError, match="cannot be brought"):
        second.ready()
    with pytest.raises(EngineError, match="has no 1,048,576 bytes of memory"):
        tensorrt.current_device().room(WEIGHTS)


def test_nothing_is_brought_while_a_graph_is_recorded(gpu: Gpu, bundle: Path) -> None:
    engine, device = opened(bundle, TRANSFORMER), tensorrt.current_device()
    assert engine.loaded and weight_turns(device).give()
    with pytest.raises(EngineError, match=r"the weights of 'transformer.* left the device before a clip was recorded"):
        device.record(engine.ready)
    device.record(engine.ahead)
    assert not engine.loaded and not device.recording
    engine.ready()
    device.record(engine.ready)


def as_inputs(bundle: Path, graph: str, folder: Path) -> None:
    """The graph's plan built anew, with its weights as inputs."""
    loaded = Bundle.load(bundle)
    model, shared = weights_as_inputs(loaded.path(graph))
    (folder / graph).write_bytes(model)
    shutil.rmtree(EngineStore().root, ignore_errors=True)
    build_double(
        loaded, graph, plan=str(folder / graph), weights="inputs", shared_weights=[vars(each) for each in shared]
    )


def test_weights_that_are_inputs_lie_on_the_device_once_for_all_engines(gpu: Gpu, bundle: Path, tmp_path: Path) -> None:
    loaded, device = Bundle.load(bundle), tensorrt.current_device()
    graph = TRANSFORMER
    as_inputs(bundle, graph, tmp_path)
    on_host = OnnxRuntimeEngine(loaded.path(graph), num_threads=2)
    engines = [open_tensorrt(loaded.path(graph), loaded.fingerprint(graph), "tensorrt_rtx") for _ in range(2)]
    assert dict(engines[0].inputs) == dict(on_host.inputs)
    arrays = [{name: spec.zeros() for name, spec in {**on_host.inputs, **on_host.outputs}.items()} for _ in range(3)]
    random = np.random.default_rng(0)
    for name in on_host.inputs:
        drawn = random.standard_normal(arrays[0][name].shape)
        for each in arrays:
            each[name][...] = drawn
    on_host.bind(arrays[0]).run()
    bindings = [engine.bind(mine) for engine, mine in zip(engines, arrays[1:], strict=True)]
    for binding in bindings:
        binding.run()
    weights = sum(buffer.size for buffer in gpu.buffers if not buffer.host) - device.room(1).size
    stored = sum(np.prod(each.shape) * 4 for each in weights_as_inputs(loaded.path(graph))[1])
    assert stored <= weights - 2 * gpu.weight_bytes < 1.01 * stored  # one copy; the plans hold none
    found = arrays[1]["model_output"].copy()
    # Of weights that are inputs ONNX Runtime packs none ahead, and sums in another order.
    np.testing.assert_allclose(found, arrays[0]["model_output"], rtol=0, atol=2e-5)
    np.testing.assert_array_equal(arrays[2]["model_output"], found)
    # Taken off, they are brought to another place, and contexts find them there.
    assert weight_turns(device).give()
    kept = device.allocate(1 << 16)
    arrays[1]["model_output"][...] = 0
    bindings[0].run()
    np.testing.assert_array_equal(arrays[1]["model_output"], found)
    kept.close(device.stream)
    del bindings, binding
    for engine in engines:
        engine.close()
    assert all(buffer.host or buffer.size in (device.room(1).size, gpu.weight_bytes) for buffer in gpu.buffers)


def test_a_stripped_plan_gets_the_weights_of_its_graph(gpu: Gpu, bundle: Path, tmp_path: Path) -> None:
    loaded, graph = Bundle.load(bundle), "text_encoder.onnx"
    shutil.rmtree(EngineStore().root)
    build_double(loaded, graph, plan=STRIPPED + str(loaded.path(graph)), weights="stripped")
    engine = open_tensorrt(loaded.path(graph), loaded.fingerprint(graph), "tensorrt_rtx")
    arrays = {name: spec.zeros() for name, spec in {**engine.inputs, **engine.outputs}.items()}
    for name in engine.inputs:
        arrays[name][...] = 1
    engine.bind(arrays).run()
    assert any(np.any(arrays[name]) for name in engine.outputs)
    with pytest.raises(EngineError, match="cannot be given the weights of its graph"):
        engine.refit(tmp_path / "nothing.onnx")


def test_the_double_sees_an_engine_without_its_weights(gpu: Gpu, bundle: Path) -> None:
    device, library = tensorrt.current_device(), tensorrt_double(gpu)
    plan = str(Bundle.load(bundle).path("text_encoder.onnx")).encode()
    engine = TensorRtEngine(plan, "a.onnx", device=device, library=library)
    binding = engine.bind({name: spec.zeros() for name, spec in {**engine.inputs, **engine.outputs}.items()})
    binding.run()
    engine._engine.unload_weights()
    engine._weights.clear()  # nobody knows that they are gone
    with pytest.raises(Broken, match="whose weights are not on the device"):
        binding.run()
