"""Dynamic int8 linears for ONNX Runtime on a CPU, with the quantised weights in a new safetensors file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sora_export.external_data import StoredTensor
from sora_export.linears import Linear, quantisable_linears
from sora_export.new_weights import Recipe, initializer, new_weights

LARGEST = 63
"""Of a weight: 7 bits. AVX2 adds pairs of products of two bytes in 16 bits, which 8-bit weights overflow
(0.4% wrong sums, errors of up to 24,000 steps)."""
FINER = ".finer"
"""Suffix of what the eighth bit adds to a weight in half steps, -1, 0 or 1, of which a byte holds four as value + 1,
the first in its lowest bits: [in, ceil(out / 4)]. No operator of the graph reads it; the runtime's own linears do,
where products of bytes are added in 32 bits (`python -m benchmarks.int8_forward` has both)."""


def quantize_for_cpu(model: ir.Model, *, root: Path, data_file: str, keep: frozenset[str] = frozenset()) -> None:
    """Rewrites `model` in place: `Gemm` of every quantisable linear becomes `DynamicQuantizeMatMul`.

    The operator measures the range of its input at every call, quantises it to unsigned 8 bits,
    multiplies in integers and adds the bias in float32, all in one pass over memory. What keeps its
    float32 weight still points into the checkpoint.

    Args:
        model: A float32 graph.
        root: The bundle's folder.
        data_file: Where the quantised weights go, relative to `root`. If it holds the weights of all
            these layers already (of another bucket), it is used as it is.
        keep: Names of weights that stay float32.

    Raises:
        OutputError: The file cannot be written.
    """
    linears = [linear for linear in quantisable_linears(model.graph) if linear.name not in keep]
    if not linears:
        return
    tensors = new_weights(root / data_file, linears, INT8)
    for linear in linears:
        _replace(model.graph, linear, tensors, root)
    model.opset_imports["com.microsoft"] = 1


def _replace(graph: ir.Graph, linear: Linear, tensors: dict[str, StoredTensor], root: Path) -> None:
    weight, scale = (
        initializer(graph, name, dtype, tensors[name], tensors[name].shape, root)
        for name, dtype in ((f"{linear.name}.int8", ir.DataType.INT8), (f"{linear.name}.scale", ir.DataType.FLOAT))
    )
    finer = tensors[f"{linear.name}.int8{FINER}"]
    initializer(graph, f"{linear.name}.int8{FINER}", ir.DataType.UINT8, finer, finer.shape, root)
    bias = linear.node.inputs[2] if len(linear.node.inputs) > 2 else None
    inputs = [linear.x, weight, scale, None, *([bias] if bias is not None else [])]
    node = ir.node("DynamicQuantizeMatMul", inputs, domain="com.microsoft", name=linear.node.name)
    old, new = linear.node.outputs[0], node.outputs[0]
    new.shape, new.type = old.shape, old.type
    floats = linear.node.inputs[1]
    ir.convenience.replace_nodes_and_values(graph, linear.node, [linear.node], [node], [old], [new])
    discard_unused(graph, floats, linear.weight)


def discard_unused(graph: ir.Graph, *values: ir.Value | None) -> None:
    """Removes casts and initialisers that nothing uses any more; give users first."""
    for value in values:
        if value is None or any(value.uses()):
            continue
        producer = value.producer()
        if producer is not None:
            graph.remove(producer, safe=True)
        elif value.name is not None and value.name in graph.initializers:
            del graph.initializers[value.name]


def _layout(linear: Linear) -> list[tuple[str, str, int, list[int]]]:
    n, k = linear.out_features, linear.in_features
    return [("scale", "F32", 4, [n]), ("int8", "I8", 1, [k, n]), (f"int8{FINER}", "U8", 1, [k, -(-n // 4)])]


def _quantised(linear: Linear) -> Iterator[NDArray[Any]]:
    n, k = linear.out_features, linear.in_features
    scales = np.empty(n, np.float32)
    weights = np.empty((k, n), np.int8)
    finer = np.ones((k, -(-n // 4) * 4), np.uint8)
    for part, rows in linear.weight_rows():
        largest = np.abs(rows).max(axis=1)
        scales[part] = np.where(largest > 0, largest / LARGEST, 1.0)
        steps = rows / scales[part, None]
        rounded = np.rint(steps)
        weights[:, part] = rounded.T
        # 8 bits end at 127 half steps, and 63 whole ones are 126: at most one more.
        finer[:, part] = (np.rint(2 * steps).clip(-127, 127) - 2 * rounded + 1).T
    yield scales
    yield weights
    yield (finer.reshape(k, -1, 4) << np.array([0, 2, 4, 6], np.uint8)).sum(axis=2, dtype=np.uint8)


INT8 = Recipe(
    "int8, 7 bits and what an eighth adds, symmetric, a scale for each output channel; [in, out]", _layout, _quantised
)
