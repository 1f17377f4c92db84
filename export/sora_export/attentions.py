"""Finds the self-attentions of a graph that may run in FP8, and writes them as TensorRT wants to see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from sora_export.graph_edit import GraphEditor, dims_of
from sora_export.half_precision import stored_weight

_CHANNELS = range(16, 257)  # of a head that a fused kernel takes; measured with TensorRT-RTX 1.7.1
_HEADS_FIRST, _KEY_COLUMNS = (0, 2, 1, 3), (0, 2, 3, 1)
_LAYOUTS = (_HEADS_FIRST, _KEY_COLUMNS, _HEADS_FIRST)  # of query, key, value
LARGEST_PROBABILITY = 1.0


@dataclass(frozen=True)
class Attention:
    """An `Attention` over rows [1, tokens, heads x channels], without mask or cache."""

    node: ir.Node
    name: str
    """The weight that makes its values, with `.attention` behind: stable from bucket to bucket."""
    tokens: int
    heads: int
    channels: int
    scale: float


class Pair(Protocol):
    """Puts Q/DQ behind a value; `largest` is the magnitude that the format's largest number stands for."""

    def __call__(self, before: ir.Node, value: ir.Value, largest: float, name: str) -> ir.Value:
        """The dequantised value."""


def self_attentions(graph: ir.Graph) -> list[Attention]:
    """The attentions with as many keys as queries; the one over a few hundred words of text costs little."""
    found = []
    for node in graph:
        if node.op_type != "Attention" or len([value for value in node.inputs if value is not None]) != 3:
            continue
        query, key, value = (dims_of(value) for value in node.inputs[:3])
        name = _weight_behind(node.inputs[2])
        if query is None or query != key or query != value or len(query) != 3 or query[0] != 1 or name is None:
            continue
        heads = node.attributes["q_num_heads"].as_int()
        channels = query[2] // heads
        given = node.attributes.get("scale")
        scale = given.as_float() if given is not None else channels**-0.5
        if heads > 1 and channels in _CHANNELS and not _is_causal(node):
            found.append(Attention(node, f"{name}.attention", query[1], heads, channels, scale))
    return found


def quantise_attention(graph: ir.Graph, attention: Attention, largest: Sequence[float], pair: Pair) -> None:
    """Writes one attention as `Q/DQ(q) Q/DQ(k)^T -> Softmax -> Q/DQ -> Q/DQ(v)`, which becomes one FP8 kernel.

    The operator itself has no place for the scale of its probabilities: with Q/DQ around it TensorRT
    rounds to FP8 and multiplies in half. The pattern is that of NVIDIA ModelOpt.

    Args:
        graph: Of the node, in half precision.
        attention: Which one.
        largest: Magnitudes of query, key and value.
        pair: Puts Q/DQ behind a value.
    """
    editor, node = GraphEditor(graph), attention.node
    rows = (1, attention.tokens, attention.heads, attention.channels)
    query, key, value = (
        editor.node(
            node, "Transpose", [editor.reshape(node, given, rows)], [rows[axis] for axis in perm], {"perm": perm}
        )
        for given, perm in zip(node.inputs, _LAYOUTS, strict=False)
        if given is not None
    )
    scaled = editor.node(node, "Mul", [query, _scalar(graph, attention.scale, query)], dims_of(query) or ())
    q = pair(node, scaled, largest[0] * attention.scale, f"{attention.name}.query")
    k = pair(node, key, largest[1], f"{attention.name}.key")
    v = pair(node, value, largest[2], f"{attention.name}.value")
    square = (1, attention.heads, attention.tokens, attention.tokens)
    scores = editor.node(node, "MatMul", [q, k], square)
    likely = editor.node(node, "Softmax", [scores], square, {"axis": -1})
    p = pair(node, likely, LARGEST_PROBABILITY, f"{attention.name}.probabilities")
    attended = editor.node(node, "MatMul", [p, v], dims_of(query) or ())
    back = editor.node(node, "Transpose", [attended], rows, {"perm": _HEADS_FIRST})
    editor.replace(node.outputs[0], editor.reshape(node, back, (1, attention.tokens, rows[2] * rows[3])))


def _scalar(graph: ir.Graph, number: float, like: ir.Value) -> ir.Value:
    assert like.dtype is not None
    name = f"scale.{number:.9g}.{like.dtype.name}"
    if name not in graph.initializers:
        tensor = ir.tensor([number], dtype=like.dtype, name=name)
        value = ir.Value(name=name, shape=ir.Shape([1]), type=ir.TensorType(like.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]


def _is_causal(node: ir.Node) -> bool:
    return "is_causal" in node.attributes and node.attributes["is_causal"].as_int() != 0


def _weight_behind(value: ir.Value | None) -> str | None:
    """The name of the weight of the linear that made `value`, through views and norms."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "Gemm" and node.inputs[1] is not None:
            name = stored_weight(node.inputs[1]).name
            return name.removeprefix("model.") if name is not None else None
        value = node.inputs[0]
    return None
