"""Chunks of a clip on a device: caches stay there, and frames leave while the next chunk is decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu.doubles import Broken, Gpu
from sora_runtime import Runtime
from sora_runtime.bundle import Bundle
from sora_runtime.chunks_cuda import CudaChunkDecoder, CudaChunkEncoder
from sora_runtime.condition import ChunkEncoder
from sora_runtime.decode import ChunkDecoder
from sora_runtime.engines import tensorrt
from sora_runtime.engines.onnxruntime import OnnxRuntimeEngine
from sora_runtime.engines.tensorrt import open_tensorrt
from sora_runtime.errors import BundleError, EngineError, InvalidRequest
from sora_runtime.frames_cuda import FramesOut, Leaving

GRAPHS = ("vae_decoder.64x64.first.onnx", "vae_decoder.64x64.next.onnx")


@pytest.fixture
def decoders(gpu: Gpu, bundle: Path) -> tuple[ChunkDecoder, CudaChunkDecoder]:
    """wan-pocket's on the CPU and on the device."""
    loaded = Bundle.load(bundle)
    on_host = [OnnxRuntimeEngine(loaded.path(graph), num_threads=2) for graph in GRAPHS]
    on_device = [open_tensorrt(loaded.path(graph), loaded.fingerprint(graph), "tensorrt_rtx") for graph in GRAPHS]
    return ChunkDecoder(*on_host), CudaChunkDecoder(*on_device)


def latents_of(decoder: ChunkDecoder, seed: int, chunks: int = 6) -> Any:
    first, later = (array.shape for array in decoder._latents)
    shape = (*first[:2], first[2] + (chunks - 1) * later[2], *first[3:])
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_frames_are_the_cpus(gpu: Gpu, decoders: tuple[ChunkDecoder, CudaChunkDecoder]) -> None:
    on_host, on_device = decoders
    for seed, chunks in ((0, 6), (1, 6), (2, 1), (3, 3)):
        latents = latents_of(on_host, seed, chunks)
        expected = list(on_host.rgb8_chunks(latents, num_threads=2))
        found = list(on_device.rgb8_chunks(latents))
        assert len(found) == chunks
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)
    assert on_device.seconds > 0


def test_caches_stay_on_the_device(gpu: Gpu, decoders: tuple[ChunkDecoder, CudaChunkDecoder]) -> None:
    on_host, on_device = decoders
    list(on_device.rgb8_chunks(latents_of(on_host, 0)))
    gpu.log.clear()
    list(on_device.rgb8_chunks(latents_of(on_host, 1)))
    log = Counter(gpu.log)
    # Of each chunk, its latents come and its frames' bytes go; nothing else crosses, and no memory is taken.
    assert log["copy host to device"] == log["copy device to host"] == log["execute"] == log["rgb8"] == 6
    assert log["copy device to device"] == log["allocate device"] == log["allocate host"] == 0


def test_a_chunk_is_decoded_while_the_one_before_leaves(
    gpu: Gpu, decoders: tuple[ChunkDecoder, CudaChunkDecoder]
) -> None:
    on_host, on_device = decoders
    gpu.log.clear()
    for taken, _ in enumerate(on_device.rgb8_chunks(latents_of(on_host, 0)), 1):
        # When the host gets a chunk's frames, the network's call of the next one is on the stream.
        assert gpu.log.count("execute") == min(taken + 1, 6)
        assert gpu.log.count("sync event") == taken
        assert gpu.log.count("sync") == 0


def test_a_clip_that_is_given_up_leaves_the_device_idle_and_free(
    gpu: Gpu, decoders: tuple[ChunkDecoder, CudaChunkDecoder]
) -> None:
    on_host, on_device = decoders
    chunks = on_device.rgb8_chunks(latents_of(on_host, 0))
    next(chunks)
    assert any(stream.pending for stream in gpu.streams.values())
    chunks.close()
    assert not any(stream.pending for stream in gpu.streams.values())
    latents = latents_of(on_host, 1)
    expected = np.concatenate(list(on_host.rgb8_chunks(latents, num_threads=2)))
    np.testing.assert_array_equal(np.concatenate(list(on_device.rgb8_chunks(latents))), expected)
    with pytest.raises(EngineError, match="the decoder takes"):
        next(on_device.rgb8_chunks(latents[..., :-1]))


def test_a_clip_that_is_stopped_while_it_is_decoded_gives_the_device_back(gpu: Gpu, bundle: Path) -> None:
    ask: dict[str, Any] = {"prompt": "a red circle moving left", "num_inference_steps": 2, "seed": 4}
    with Runtime.load(bundle) as runtime:
        expected = runtime.generate(**ask).frames

        def fail(stage: str, done: int, _total: int) -> None:
            if stage == "vae_decode" and done > 4:
                raise ValueError("no more")

        with pytest.raises(ValueError, match="no more") as stopped:  # its traceback holds every frame until here
            runtime.generate(**ask, on_progress=fail)
        assert not any(stream.pending for stream in gpu.streams.values())
        np.testing.assert_array_equal(runtime.generate(**ask).frames, expected)
        assert stopped.value.args == ("no more",)


def test_a_device_is_not_used_from_a_callback_of_its_own_clip(gpu: Gpu, bundle: Path) -> None:
    ask: dict[str, Any] = {"prompt": "a red circle moving left", "num_inference_steps": 2, "seed": 4}
    with Runtime.load(bundle) as runtime, Runtime.load(bundle) as other:

        def again(stage: str, done: int, _total: int) -> None:
            if stage == "vae_decode" and done:
                other.generate(**ask)

        with pytest.raises(InvalidRequest, match="a runtime was called from a callback of a clip; call it after"):
            runtime.generate(**ask, on_progress=again)

        loaded = Bundle.load(bundle)

        def open_one(stage: str, _done: int, _total: int) -> None:
            if stage == "vae_decode":
                open_tensorrt(loaded.path(GRAPHS[0]), loaded.fingerprint(GRAPHS[0]), "tensorrt_rtx")

        with pytest.raises(EngineError, match="was used from a callback of a clip on it; call after generate returns"):
            runtime.generate(**ask, on_progress=lambda stage, done, total: done and open_one(stage, done, total))
        np.testing.assert_array_equal(other.generate(**ask).frames, runtime.generate(**ask).frames)


def test_bytes_that_have_not_left_may_not_be_overwritten(
    gpu: Gpu, decoders: tuple[ChunkDecoder, CudaChunkDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_host, on_device = decoders
    put = FramesOut.put

    def in_one_place(self: FramesOut, *rest: Any) -> Leaving:
        self._next = 0
        return put(self, *rest)

    monkeypatch.setattr(FramesOut, "put", in_one_place)
    with pytest.raises(Broken, match="of another stream with nothing between them"):
        list(on_device.rgb8_chunks(latents_of(on_host, 0)))


@pytest.mark.parametrize("zero_frames", [0, 4, 12])
def test_pictures_are_encoded_as_on_the_cpu(
    gpu: Gpu, encoder_graphs: Callable[[], list[Path]], zero_frames: int
) -> None:
    graphs = encoder_graphs()
    library, device = tensorrt._module("tensorrt_rtx"), tensorrt.current_device()
    on_host = ChunkEncoder(*(OnnxRuntimeEngine(graph, num_threads=1) for graph in graphs))
    engines = [
        tensorrt.TensorRtEngine(str(graph).encode(), graph.name, device=device, library=library) for graph in graphs
    ]
    on_device = CudaChunkEncoder(*engines)
    for seed in range(2):
        picture = np.random.default_rng(seed).standard_normal((1, 3, 1, 8, 8)).astype(np.float32)
        np.testing.assert_array_equal(on_device.encode(picture, zero_frames), on_host.encode(picture, zero_frames))
    if zero_frames:
        alone = CudaChunkEncoder(engines[0], None)
        with pytest.raises(BundleError, match="takes one frame and the model wants a clip"):
            alone.encode(picture, zero_frames)
        alone.close()
    on_device.close()
    assert all(buffer.host for buffer in gpu.buffers)


@pytest.fixture
def encoder_graphs(tmp_path: Path) -> Callable[[], list[Path]]:
    """Two graphs as of a causal encoder: latents are means over frames, plus what the chunk before passed on."""
    from onnx import TensorProto, helper, save

    def make() -> list[Path]:
        paths = []
        for name, frames in (("first", 1), ("next", 4)):
            given = helper.make_tensor_value_info("frames", TensorProto.FLOAT, [1, 3, frames, 8, 8])
            cache = [1, 3, 1, 8, 8]
            nodes = [helper.make_node("ReduceMean", ["frames", "axes"], ["mean"], keepdims=1)]
            inputs = [given]
            if name == "next":
                inputs.append(helper.make_tensor_value_info("cache_in.0", TensorProto.FLOAT, cache))
                nodes.append(helper.make_node("Add", ["mean", "cache_in.0"], ["latents"]))
            else:
                nodes.append(helper.make_node("Identity", ["mean"], ["latents"]))
            nodes.append(helper.make_node("Tanh", ["latents"], ["cache_out.0"]))
            outputs = [
                helper.make_tensor_value_info(each, TensorProto.FLOAT, cache) for each in ("latents", "cache_out.0")
            ]
            axes = helper.make_tensor("axes", TensorProto.INT64, [1], [2])
            graph = helper.make_graph(nodes, name, inputs, outputs, [axes])
            path = tmp_path / f"vae_encoder.{name}.onnx"
            save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
            paths.append(path)
        return paths

    return make
