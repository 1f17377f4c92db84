"""Turns what a TensorRT builder says when it refuses a graph into one sentence with a remedy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_export.tensorrt_library import BuildLog

if TYPE_CHECKING:
    from sora_export.engine_from_onnx import EngineOptions

_NO_KERNEL = "not supported by a dedicated kernel"
_DTYPE_NAMES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
_NO_GPU = ("cudaError", "CUDA_SUCCESS", "CUDA initialization")


def explain(trt: Any, network: Any, graph: Path, options: EngineOptions, log: BuildLog) -> str:
    """Why there is no plan: the builder's first error, and the remedy where there is one."""
    error = log.first_error() or "the builder gives no reason"
    start = f"{trt.__name__} cannot build {graph.name} for {', '.join(options.compute_capabilities) or 'this GPU'}"
    if _NO_KERNEL in error:
        return f"{start}: {_attention_without_kernel(trt, network)}"
    types = re.search(r"for target\(s\) ([^,]+), because the model contains HW-specific datatypes: ([\w, ]+)", error)
    if types:
        return f"{start}: {types[1]} has no {types[2].strip()}; choose another precision, or leave that device out"
    if "workspace limit" in error:
        limit = options.workspace_bytes
        return f"{start}: no kernel gets by with workspace_bytes = {limit}; raise it"
    if any(sign in error for sign in _NO_GPU):
        remedy = "build on a machine with a GPU" + (
            ", or give weights 'inputs'" if options.weights == "stripped" else ""
        )
        return f"{start} with weights '{options.weights}' without a GPU; {remedy}"
    return f"{start}: {one_line(error)}"


def _attention_without_kernel(trt: Any, network: Any) -> str:
    shapes: dict[str, list[str]] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            query = layer.get_input(0)
            shape = f"{_DTYPE_NAMES.get(query.dtype.name, query.dtype.name.lower())} {list(query.shape)}"
            shapes.setdefault(shape, []).append(layer.name.removesuffix("_AttentionInput"))
    listed = "; ".join(f"{shape} (nodes: {len(names)}, first '{names[0]}')" for shape, names in shapes.items())
    return (
        f"it has no fused kernel for Attention with a query of {listed}; it takes float16 and bfloat16, "
        "several heads, and head sizes from 16 to 256; cast it, or allow unfused_attention"
    )


def one_line(text: str) -> str:
    """The library's message without its place in the library."""
    text = " ".join(text.split())
    text = re.sub(r" ?(In|See|at) (\S+ )?(at )?/_src/\S+", "", text)
    return text[:300].rstrip(" .")
