"""Points nodes of int8 graphs to this project's own operators for ONNX Runtime (csrc/onnxruntime/operators.cpp).

Linears and attention have the names, inputs and attributes of ONNX Runtime's `DynamicQuantizeMatMul` and
`MultiHeadAttention`, so that a bundle is the same for every machine and only the domain of a node changes when a
session is made; a convolution takes the place of itself and of the nodes that quantise around it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from functools import cache
from pathlib import Path

from .. import _core
from . import graph_bytes as onnx
from .graph_bytes import Message
from .int8_convolutions import convolutions

DOMAIN = "sora.cpu"
LIBRARY = Path(_core.__file__).with_name("_operators.so")
_THEIRS = b"com.microsoft"
# The initialiser that holds a weight's eighth bit (sora_export.quantize_cpu.FINER), and which input it becomes.
_FINER, _FINER_AT = b".finer", 5
_LINEAR, _ATTENTION = b"DynamicQuantizeMatMul", b"MultiHeadAttention"
# The operator set: its domain, and version 1. The attribute gelu = 1: its name, its integer, its type.
_OPSET = onnx.field(onnx.OPSET, onnx.field(1, DOMAIN.encode()) + bytes([2 << 3, 1]))
_GELU = onnx.field(onnx.ATTRIBUTE, onnx.field(1, b"gelu") + bytes([3 << 3, 1, 0xA0, 0x01, 2]))


@cache
def wanted() -> bool:
    """Whether they are faster here than ONNX Runtime's: where the processor has AMX."""
    return bool(_core.has_amx()) and LIBRARY.exists()


def with_own_operators(model: bytes) -> bytes | None:
    """The model with what it has of int8 pointed to `DOMAIN`.

    - Linears, and the GELU that alone reads one.
    - Attentions without a mask, beside int8 linears: they multiply in bfloat16, and a graph that has no int8 linears is
      a float32 one.
    - Convolutions between the quantisation of their input and of their output, in place of all five: weights stay int8,
      the input is rounded to bfloat16 and the output not at all.

    Args:
        model: an .onnx file.

    Returns:
        The changed file; None where there is nothing to change.
    """
    graph = onnx.graph_of(model)
    if graph is None:
        return None
    nodes = {at: Message(field.content) for at, field in enumerate(graph.fields) if field.number == onnx.NODE}
    uses = Counter(name for node in nodes.values() for name in node.inputs)
    uses.update(field.name for field in graph.fields if field.number == onnx.GRAPH_OUTPUT)
    weights = {field.name for field in graph.fields if field.number == onnx.INITIALIZER}
    changed: dict[int, bytes | None] = {}  # None: the node goes
    linears = {node.one(onnx.OUTPUT): at for at, node in nodes.items() if _is_linear(node)}
    for at, node in nodes.items():
        if at in linears.values() or (linears and _is_attention(node)):
            changed[at] = _written(node, weights)
    for at, node in nodes.items():
        if _is_gelu(node) and uses[node.inputs[0]] == 1 and node.inputs[0] in linears:
            before = linears[node.inputs[0]]
            changed |= {at: None, before: _written(nodes[before], weights, node)}
    changed |= convolutions(nodes, uses, DOMAIN)
    if not changed:
        return None
    parts = []
    for at, field in enumerate(graph.fields):
        new = changed.get(at, field.content)
        if new is not None:
            parts.append(onnx.field(onnx.NODE, new) if at in changed else field.raw)
    return onnx.with_graph(model, parts) + _OPSET


def _is_linear(node: Message) -> bool:
    """Whether it can be the own linear: weights have no zero points."""
    return node.kind == (_THEIRS, _LINEAR) and (len(node.inputs) < 4 or not node.inputs[3])


def _is_attention(node: Message) -> bool:
    """Whether it can be the own attention: there is no mask."""
    return node.kind == (_THEIRS, _ATTENTION) and len(node.inputs) == 3


def _is_gelu(node: Message) -> bool:
    """Whether it is GELU as tanh approximates it."""
    attributes = node.all(onnx.ATTRIBUTE)
    return node.kind == (b"", b"Gelu") and len(attributes) == 1 and b"tanh" in attributes[0]


def _written(node: Message, weights: Collection[bytes], gelu: Message | None = None) -> bytes:
    """The node in the other domain; a linear with its eighth bit, and giving what `gelu` gives if that is told."""
    replaced = {onnx.DOMAIN} if gelu is None else {onnx.DOMAIN, onnx.OUTPUT}
    kept = [field.raw for field in node.fields if field.number not in replaced]
    if node.kind[1] == _LINEAR and (finer := node.inputs[1] + _FINER) in weights:
        kept += [onnx.field(onnx.INPUT, b"")] * (_FINER_AT - len(node.inputs)) + [onnx.field(onnx.INPUT, finer)]
    if gelu is not None:
        kept += [onnx.field(onnx.OUTPUT, gelu.one(onnx.OUTPUT)), _GELU]
    return b"".join([*kept, onnx.field(onnx.DOMAIN, DOMAIN.encode())])
