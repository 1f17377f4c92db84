"""Says what is in a graph without reading its weights: operators, FLOPs, parameters, bytes, leftovers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as passes

from sora_export.graph_edit import dims_of
from sora_runtime.errors import BundleError

SMALL_CONSTANT = 1024
"""Elements up to which a constant of a graph without external data is a number, not a weight."""

SHAPE_ARITHMETIC = frozenset(
    {
        *("Shape", "Size", "Range", "ConstantOfShape", "NonZero", "Unique", "ScatterND", "ScatterElements", "EyeLike"),
        *("If", "Loop", "Scan", "SplitToSequence", "SequenceAt", "SequenceEmpty", "SequenceInsert"),
        *("ConcatFromSequence",),
    }
)
"""Operators that a graph of static shapes has no use for: what they compute is known when it is exported."""


def report(model: ir.Model | Path) -> dict[str, Any]:
    """The report of one graph with static shapes; bundle.json keeps it under "reports".

    FLOPs are two for every multiply-add of matrix products, convolutions and attention, nothing for
    the rest: the convention of `torch.utils.flop_counter.FlopCounterMode`. Attention counts both of
    its products over all keys, 4 x heads x queries x keys x channels.

    Args:
        model: A model or the path of its file; external data is not read.

    Returns:
        `operators` by type and `num_operators`; `flops` and `flops_by_operator`, None with a
        `flops_reason` where a shape is not known; `parameters` (elements of weights, a shared one
        once) and `parameter_bytes` by stored dtype; `input_bytes`, `output_bytes`;
        `largest_activation` (`name`, `dims`, `bytes`), the largest result of an operator; `casts`,
        `quantizers` and `dequantizers`; `shape_arithmetic` by type.

    Raises:
        BundleError: The file is no graph.
    """
    model = _load(model) if isinstance(model, Path) else model
    if any(dims_of(value) is None for node in model.graph for value in node.outputs):
        model = passes.ShapeInferencePass()(model.clone()).model
    graph = model.graph
    operators = Counter(_name(node) for node in graph)
    weights = list(_weights(graph))
    stored: Counter[str] = Counter()
    for value in weights:
        stored[_dtype_name(value)] += _bytes(value)
    return {
        "operators": dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        "num_operators": operators.total(),
        **_all_flops(graph),
        "parameters": sum(math.prod(dims_of(value) or ()) for value in weights),
        "parameter_bytes": dict(stored),
        "input_bytes": sum(_bytes(value) for value in graph.inputs),
        "output_bytes": sum(_bytes(value) for value in graph.outputs),
        "largest_activation": _largest(graph),
        "casts": operators["Cast"],
        "quantizers": operators["QuantizeLinear"] + operators["DynamicQuantizeLinear"],
        "dequantizers": operators["DequantizeLinear"],
        "shape_arithmetic": shape_arithmetic(graph),
    }


def _all_flops(graph: ir.Graph) -> dict[str, Any]:
    flops: Counter[str] = Counter()
    for node in graph:
        if node.domain in ("", "com.microsoft") and node.op_type in _FLOPS:
            if any(dims_of(value) is None for value in (*node.inputs[:4], node.outputs[0]) if value is not None):
                reason = f"{node.op_type} '{node.name}' has no static shape"
                return {"flops": None, "flops_by_operator": None, "flops_reason": reason}
            flops[node.op_type] += 2 * _FLOPS[node.op_type](node)
    return {"flops": flops.total(), "flops_by_operator": dict(flops.most_common())}


def shape_arithmetic(graph: ir.Graph) -> dict[str, int]:
    """How many operators compute what was known at export: `SHAPE_ARITHMETIC`, and Gather on a shape."""
    found: Counter[str] = Counter()
    for node in graph:
        if node.op_type in SHAPE_ARITHMETIC or (node.op_type == "Gather" and _is_shape(node.inputs[0])):
            found[_name(node)] += 1
    return dict(found)


def _load(path: Path) -> ir.Model:
    try:
        return ir.load(path)
    except Exception as error:
        # protobuf, onnx and onnx_ir each raise their own on bytes that are no graph.
        raise BundleError(f"'{path}' is no ONNX graph ({type(error).__name__}); rebuild the bundle") from error


def _name(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _is_shape(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "Shape"


def _weights(graph: ir.Graph) -> list[ir.Value]:
    """What points into a file of weights or will; in a graph that holds all its data, what is large."""
    values = list(graph.initializers.values())
    outside = [v for v in values if v.const_value is None or isinstance(v.const_value, ir.ExternalTensor)]
    return outside or [v for v in values if math.prod(dims_of(v) or ()) > SMALL_CONSTANT]


def _dtype_name(value: ir.Value) -> str:
    """As NumPy and torch write it: float32, bfloat16, int8."""
    assert value.dtype is not None
    name = value.dtype.name.lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _bytes(value: ir.Value) -> int:
    dims = dims_of(value)
    if dims is None or value.dtype is None or value.dtype == ir.DataType.STRING:
        return 0
    return math.ceil(math.prod(dims) * value.dtype.bitwidth / 8)


def _largest(graph: ir.Graph) -> dict[str, Any] | None:
    """The largest value that a node computes, which an engine has to hold."""
    values = [value for node in graph for value in node.outputs]
    if not values:
        return None
    value = max(values, key=_bytes)
    return {"name": value.name, "dims": list(dims_of(value) or ()), "bytes": _bytes(value)}


def _dims(value: ir.Value | None) -> tuple[int, ...]:
    dims = dims_of(value)
    assert dims is not None
    return dims


def _matmul(node: ir.Node) -> int:
    return math.prod(_dims(node.outputs[0])) * _dims(node.inputs[0])[-1]


def _gemm(node: ir.Node) -> int:
    transposed = node.attributes.get("transA")
    rows_first = transposed is not None and transposed.as_int() != 0
    return math.prod(_dims(node.outputs[0])) * _dims(node.inputs[0])[0 if rows_first else 1]


def _conv(node: ir.Node) -> int:
    """Each output element is a sum over the kernel and the input channels of its group."""
    _, *kernel = _dims(node.inputs[_WEIGHT_OF.get(node.op_type, 1)])
    return math.prod(_dims(node.outputs[0])) * math.prod(kernel)


def _conv_transpose(node: ir.Node) -> int:
    """Each input element is spread over the kernel and the output channels of its group."""
    _, *kernel = _dims(node.inputs[1])
    return math.prod(_dims(node.inputs[0])) * math.prod(kernel)


def _attention(node: ir.Node) -> int:
    """Queries times keys and weights times values, over all heads; 3-D inputs hold the heads side by side."""
    query, key, value = (_dims(node.inputs[i]) for i in range(3))
    if len(query) == 4:
        batch, heads, queries, channels = query
        return batch * heads * queries * key[2] * (channels + value[3])
    heads, shared = (node.attributes[name].as_int() for name in ("q_num_heads", "kv_num_heads"))
    return query[0] * heads * query[1] * key[1] * (query[2] // heads + value[2] // shared)


def _rows_attention(node: ir.Node) -> int:
    """ONNX Runtime's operator: [batch, queries, channels of all heads] each."""
    query, key, value = (_dims(node.inputs[i]) for i in range(3))
    return query[0] * query[1] * key[1] * (query[2] + value[2])


def _einsum(node: ir.Node) -> int:
    """A product over all letters, for two operands; one operand is no product. The exporter writes no ellipsis."""
    if len(node.inputs) != 2:
        return 0
    terms = node.attributes["equation"].as_string().replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        sizes |= zip(term, _dims(value), strict=True)
    return math.prod(sizes.values())


_WEIGHT_OF = {"QLinearConv": 3}
_FLOPS: dict[str, Callable[[ir.Node], int]] = {
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvInteger": _conv,
    "QLinearConv": _conv,
    "ConvTranspose": _conv_transpose,
    "Attention": _attention,
    "MultiHeadAttention": _rows_attention,
    "DynamicQuantizeMatMul": _matmul,
    "Einsum": _einsum,
}
