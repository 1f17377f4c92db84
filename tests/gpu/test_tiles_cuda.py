"""Tiles of a clip on a device: the CPU's frames, blended there, whatever the cut."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from gpu.doubles import Gpu
from sora_runtime.engines import tensorrt
from sora_runtime.engines.onnxruntime import OnnxRuntimeEngine
from sora_runtime.engines.tensorrt import TensorRtEngine
from sora_runtime.errors import BundleError, EngineError
from sora_runtime.manifest import TiledBucket
from sora_runtime.tiles import TiledDecoder
from sora_runtime.tiles_cuda import CudaTiledDecoder

CHANNELS, TEMPORAL, SPATIAL = 4, 4, 2
# Of a clip, of a tile, and the most that two tiles may be apart: latent frames, rows and columns.
CUTS = [
    ((5, 4, 6), (5, 4, 6), (5, 4, 6)),
    ((9, 4, 6), (5, 4, 6), (3, 4, 6)),
    ((5, 10, 6), (5, 4, 6), (5, 3, 6)),
    ((5, 4, 13), (5, 4, 6), (5, 4, 4)),
    ((9, 10, 13), (5, 4, 6), (3, 3, 4)),
    ((9, 8, 12), (5, 4, 6), (4, 4, 6)),  # no rows and columns shared
]


def graph_of(folder: Path, tile: tuple[int, int, int]) -> Path:
    """A decoder whose every tile shows where it is cut: latents made larger, plus values of each place in a tile."""
    t, h, w = tile
    made = [1, 3, TEMPORAL * (t - 1) + 1, SPATIAL * h, SPATIAL * w]
    random = np.random.default_rng(sum(tile))
    constants = {
        "mix": random.standard_normal((3, CHANNELS, 1, 1, 1)) * 0.3,
        "place": random.standard_normal(made) * 0.2,
    }
    initialisers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    initialisers.append(numpy_helper.from_array(np.array(made, np.int64), "sizes"))
    nodes = [
        helper.make_node("Conv", ["latents", "mix"], ["mixed"]),
        helper.make_node("Resize", ["mixed", "", "", "sizes"], ["large"], mode="nearest"),
        helper.make_node("Add", ["large", "place"], ["frames"]),
    ]
    given = helper.make_tensor_value_info("latents", TensorProto.FLOAT, [1, CHANNELS, *tile])
    frames = helper.make_tensor_value_info("frames", TensorProto.FLOAT, made)
    graph = helper.make_graph(nodes, "decoder", [given], [frames], initialisers)
    path = folder / "vae_decoder.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


def decoders(folder: Path, cut: tuple[Any, Any, Any]) -> tuple[TiledDecoder, CudaTiledDecoder]:
    clip, tile, stride = cut
    path = graph_of(folder, tile)
    size = {"num_frames": (clip[0] - 1) * TEMPORAL + 1, "height": clip[1] * SPATIAL, "width": clip[2] * SPATIAL}
    bucket = TiledBucket.model_validate({**size, "graph": path.name, "tile": {"latent": tile, "stride": stride}})
    device, library = tensorrt.current_device(), tensorrt._module("tensorrt_rtx")
    engine = TensorRtEngine(str(path).encode(), path.name, device=device, library=library)
    return TiledDecoder(OnnxRuntimeEngine(path, num_threads=1), bucket), CudaTiledDecoder(engine, bucket)


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_frames_are_the_cpus(gpu: Gpu, tmp_path: Path, cut: tuple[Any, Any, Any]) -> None:
    on_host, on_device = decoders(tmp_path, cut)
    for seed in range(2):
        latents = np.random.default_rng(seed).standard_normal((1, CHANNELS, *cut[0])).astype(np.float32)
        expected = list(on_host.rgb8_chunks(latents, num_threads=1))
        found = list(on_device.rgb8_chunks(latents))
        assert [len(chunk) for chunk in found] == [len(chunk) for chunk in expected]
        np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))
    assert on_device.seconds > 0


def test_only_latents_come_and_only_bytes_go(gpu: Gpu, tmp_path: Path) -> None:
    _, on_device = decoders(tmp_path, CUTS[4])
    latents = np.zeros((1, CHANNELS, *CUTS[4][0]), np.float32)
    list(on_device.rgb8_chunks(latents))
    gpu.log.clear()
    chunks = sum(1 for _ in on_device.rgb8_chunks(latents))
    log = Counter(gpu.log)
    assert log["copy host to device"] == log["execute"] == chunks * 3 * 3
    assert log["copy device to host"] == log["rgb8"] == chunks == 3
    assert log["allocate device"] == log["allocate host"] == 0
    assert log["sync"] == 2  # of both streams, at the end


def test_a_clip_of_another_size_is_refused(gpu: Gpu, tmp_path: Path) -> None:
    _, on_device = decoders(tmp_path, CUTS[1])
    with pytest.raises(EngineError, match="the decoder takes"):
        next(on_device.rgb8_chunks(np.zeros((1, CHANNELS, 9, 4, 7), np.float32)))
    with pytest.raises(BundleError, match="leaves gaps"):
        decoders(tmp_path, ((9, 4, 6), (5, 4, 6), (5, 4, 6)))
    on_device.close()
    assert all(buffer.host for buffer in gpu.buffers)
