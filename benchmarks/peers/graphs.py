"""This project's graphs of a transformer by itself, beside the checkpoint that they point into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.jobs import Job
from benchmarks.peers.models import TRANSFORMERS, Transformer

FP32, INT8 = "transformer.onnx", "transformer.int8.onnx"


def make_graph(job: Job) -> Path:
    """The float32 graph; made once, as several peers run it."""
    path = Path(job.checkpoint) / FP32
    if not path.is_file():
        export(TRANSFORMERS[job.model], Path(job.checkpoint))
    return path


def make_int8_graph(job: Job) -> Path:
    """The graph that `sora-bench build --precision int8` makes for ONNX Runtime, with its weights in `int8/`."""
    from benchmarks.int8_forward import make_graph_int8

    root = Path(job.checkpoint)
    path = root / INT8
    if not path.is_file():
        make_graph_int8(make_graph(job), root, path)
    return path


def export(model: Transformer, root: Path) -> None:
    """As `sora-bench build` exports the transformer of a family."""
    import onnx_ir as ir
    import torch

    from sora_export.external_data import attach_weights, read_weights
    from sora_export.onnx_from_torch import TorchGraph, onnx_from_torch

    config = dict(model.empty().config)
    like = {name: torch.empty(array.shape, device="meta") for name, array in model.inputs().items()}
    exported = onnx_from_torch(TorchGraph(_module(model, config), like, ["model_output"]))
    attach_weights(exported.model, exported.parameters, read_weights(sorted(root.glob("*.safetensors"))), root)
    partial = root / f"{FP32}.partial"
    ir.save(exported.model, partial)
    partial.rename(root / FP32)


def _module(model: Transformer, config: dict[str, Any]) -> Callable[[], Any]:
    from sora_export.families import ltx_graphs, wan_graphs

    if model.family == "wan":
        wan = wan_graphs.BucketRotary(config, model.latents)
        return lambda: wan_graphs.TransformerGraph(config, wan)
    ltx = ltx_graphs.BucketRotary(config, model.latents, model.rope_scale)
    return lambda: ltx_graphs.TransformerGraph(config, ltx, False)
