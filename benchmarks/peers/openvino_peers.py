"""OpenVINO on what it makes of torch's modules, and on this project's graphs; diffusers' loop around both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.jobs import Job
from benchmarks.peers.loop import InDiffusersLoop, Network
from benchmarks.peers.models import CLIPS


class FromTorch(InDiffusersLoop):
    """openvino.convert_model of diffusers' modules, each whole, saved as OpenVINO's own format.

    Args:
        int8: the transformer's linears get 8-bit weights, and activations are quantised as they come in groups of 64;
            otherwise everything is float32.
        bf16: computes in bfloat16 as OpenVINO does by itself where the processor has it; transformers alone.
    """

    def __init__(self, int8: bool = False, bf16: bool = False) -> None:
        super().__init__()
        self._int8, self._bf16 = int8, bf16

    def prepare(self, job: Job) -> None:
        """Convert, unless an earlier part has."""
        import openvino
        import torch

        from benchmarks.int8_forward import make_linears_int8
        from benchmarks.peers.exports import exports
        from benchmarks.peers.torch_peers import insist_on_bf16

        if self._bf16:
            insist_on_bf16()
        for export in exports(job):
            if export.file(job, ".xml").exists():
                continue
            if self._int8 and export.name == "transformer":
                make_linears_int8(export.module.model)
            _use_plain_nearest(export.module)
            with torch.no_grad():
                converted = openvino.convert_model(export.module, example_input=export.inputs)
            for port, example in zip(converted.inputs, export.inputs, strict=True):
                port.get_node().set_partial_shape(openvino.PartialShape(list(example.shape)))
            converted.validate_nodes_and_infer_types()
            openvino.save_model(converted, export.file(job, ".xml"), compress_to_fp16=False)

    def _networks(self, job: Job) -> Mapping[str, Network]:
        from benchmarks.peers.pipeline import PARTS

        return {name: self._compiled(job, name) for name in PARTS}

    def _alone(self, job: Job) -> Network:
        return self._compiled(job, "transformer")

    def _compiled(self, job: Job, name: str) -> Network:
        group = 64 if self._int8 and name == "transformer" else None
        return compiled(job.file(f"{name}.xml"), job.threads, group, bf16=self._bf16)


def _use_plain_nearest(module: Any) -> None:
    """OpenVINO has no rule for torch's "nearest-exact"; for doubling, all that Wan's VAE does, both are the same."""
    import torch

    for part in module.modules():
        if isinstance(part, torch.nn.Upsample) and part.mode == "nearest-exact":
            assert part.scale_factor == (2.0, 2.0), part
            part.mode = "nearest"


class FromGraphs(InDiffusersLoop):
    """This project's ONNX graphs as OpenVINO reads them."""

    def prepare(self, job: Job) -> None:
        """A shipped bundle has its graphs; a transformer alone gets one."""
        if job.model != CLIPS:
            from benchmarks.peers.graphs import make_graph

            make_graph(job)

    def _networks(self, job: Job) -> Mapping[str, Network]:
        from sora_runtime.bundle import Bundle

        bundle = Bundle.load(job.checkpoint)
        components = bundle.manifest.components
        bucket = next(bucket for bucket in components.transformer.buckets if bucket.task == "t2v")
        transformer = compiled(bundle.path(bucket.graph), job.threads)

        def one_timestep(hidden_states: Any, timestep: Any, embeds: Any) -> NDArray[np.float32]:
            return transformer(hidden_states, timestep.reshape(-1)[:1], embeds)

        return {
            "text_encoder": compiled(bundle.path(components.text_encoder.graph), job.threads),
            "transformer": one_timestep,
            "vae_decoder": _chunked_decoder(bundle, job.threads),
        }

    def _alone(self, job: Job) -> Network:
        from benchmarks.peers.graphs import FP32

        return compiled(Path(job.checkpoint) / FP32, job.threads)


def _chunked_decoder(bundle: Any, threads: int) -> Network:
    """The bundle's decoder over all chunks of a clip; takes what VAEs take, latents that are not normalised."""
    from sora_runtime.decode import ChunkDecoder
    from sora_runtime.engines.openvino import OpenVinoEngine

    config = bundle.read_json("vae/config.json")
    mean, std = (np.asarray(config[f"latents_{name}"], np.float32).reshape(1, -1, 1, 1, 1) for name in ("mean", "std"))
    chunk = bundle.manifest.components.vae_decoder.buckets[0]
    engines = [OpenVinoEngine(bundle.path(graph), num_threads=threads) for graph in (chunk.first, chunk.next)]
    decoder = ChunkDecoder(engines[0], engines[1])

    def decode(latents: NDArray[np.float32]) -> NDArray[np.float32]:
        # This project's decoder does the scaling itself, so the pipeline's is undone.
        normalised = np.ascontiguousarray((latents - mean) / std, np.float32)
        frames = [chunk.copy() for chunk in decoder.chunks(normalised)]
        return np.clip(np.concatenate(frames, axis=1), -1, 1)[None]

    return decode


def compiled(graph: Path, threads: int, group: int | None = None, *, bf16: bool = False) -> Network:
    """A graph as a function of its inputs in their order.

    Args:
        graph: an .xml or .onnx file.
        threads: of an evaluation.
        group: activations that share a scale where the weights are int8; None leaves them in float32.
        bf16: otherwise float32, whatever the CPU could do.
    """
    import openvino

    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    if group is not None:
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = group
    request = openvino.Core().compile_model(str(graph), "CPU", settings).create_infer_request()

    def call(*arrays: NDArray[Any]) -> NDArray[np.float32]:
        request.infer(dict(enumerate(arrays)), share_inputs=True, share_outputs=True)
        return np.array(request.get_output_tensor(0).data)

    return call
