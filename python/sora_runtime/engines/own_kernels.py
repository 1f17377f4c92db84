"""Points nodes of int8 graphs to this project's own operators for ONNX Runtime (csrc/onnxruntime/operators.cpp).

They have the names, inputs and attributes of ONNX Runtime's `DynamicQuantizeMatMul` and `MultiHeadAttention`, so that a
bundle is the same for every machine and only the domain of a node changes when a session is made. That is done on the
file's own bytes (https://protobuf.dev/programming-guides/encoding, onnx.proto): the base install brings no onnx.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .. import _core

DOMAIN = "sora.cpu"
LIBRARY = Path(_core.__file__).with_name("_operators.so")
_THEIRS = b"com.microsoft"
_LINEAR, _ATTENTION = b"DynamicQuantizeMatMul", b"MultiHeadAttention"
_BYTES = 2  # the wire type of fields that hold bytes
# Numbers of fields: of a model, of a graph, of a value, of a node, of an operator set.
_GRAPH, _OPSET = 7, 8
_NODE, _RESULT = 1, 12
_VALUE_NAME = 1
_INPUT, _OUTPUT, _OPERATOR, _ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2


@cache
def wanted() -> bool:
    """Whether they are faster here than ONNX Runtime's: where the processor has AMX."""
    return bool(_core.has_amx()) and LIBRARY.exists()


def with_own_operators(model: bytes) -> bytes | None:
    """The model with its int8 linears and its attentions without a mask pointed to `DOMAIN`, GELU joined to linears.

    Attention there multiplies in bfloat16; so a graph that has no int8 linears, which is a float32 one, stays as it is.

    Args:
        model: an .onnx file.

    Returns:
        The changed file; None where there is nothing to change.
    """
    fields = list(_fields(model))
    graphs = [index for index, (number, _, _) in enumerate(fields) if number == _GRAPH]
    if len(graphs) != 1:
        return None
    graph = _with_nodes(fields[graphs[0]][2])
    if graph is None:
        return None
    parts = [_field(_GRAPH, graph) if index == graphs[0] else raw for index, (_, raw, _) in enumerate(fields)]
    opset = _field(_OPSET_DOMAIN, DOMAIN.encode()) + bytes([_OPSET_VERSION << 3, 1])
    return b"".join([*parts, _field(_OPSET, opset)])


@dataclass
class _Node:
    """Fields of a node that decide, and those to write."""

    fields: list[tuple[int, bytes, bytes]]

    def all(self, number: int) -> list[bytes]:
        """What fields of a number hold."""
        return [content for own, _, content in self.fields if own == number]

    def one(self, number: int) -> bytes:
        """What the field of a number holds; nothing where there is none."""
        return next(iter(self.all(number)), b"")

    @property
    def inputs(self) -> list[bytes]:
        """Names."""
        return self.all(_INPUT)

    @property
    def kind(self) -> tuple[bytes, bytes]:
        """Domain and operator."""
        return self.one(_NODE_DOMAIN), self.one(_OPERATOR)

    @property
    def is_linear(self) -> bool:
        """Whether it can be the own linear: weights have no zero points."""
        return self.kind == (_THEIRS, _LINEAR) and (len(self.inputs) < 4 or not self.inputs[3])

    @property
    def is_attention(self) -> bool:
        """Whether it can be the own attention: there is no mask."""
        return self.kind == (_THEIRS, _ATTENTION) and len(self.inputs) == 3

    @property
    def is_gelu(self) -> bool:
        """Whether it is GELU as tanh approximates it."""
        attributes = self.all(_ATTRIBUTE)
        return self.kind == (b"", b"Gelu") and len(attributes) == 1 and b"tanh" in attributes[0]

    def written(self, gelu: _Node | None) -> bytes:
        """The node in the other domain, and giving what `gelu` gives if it is that node's only source."""
        kept = [raw for number, raw, _ in self.fields if number != _NODE_DOMAIN and (number != _OUTPUT or gelu is None)]
        if gelu is not None:
            kept += [_field(_OUTPUT, gelu.one(_OUTPUT)), _field(_ATTRIBUTE, _GELU)]
        return b"".join([*kept, _field(_NODE_DOMAIN, DOMAIN.encode())])


def _with_nodes(graph: bytes) -> bytes | None:
    fields = list(_fields(graph))
    nodes = {at: _Node(list(_fields(content))) for at, (number, _, content) in enumerate(fields) if number == _NODE}
    linears = {node.one(_OUTPUT): at for at, node in nodes.items() if node.is_linear}
    if not linears:
        return None
    uses = Counter(name for node in nodes.values() for name in node.inputs)
    uses.update(_Node(list(_fields(content))).one(_VALUE_NAME) for number, _, content in fields if number == _RESULT)
    gelus = {linears[x]: at for at, node in nodes.items() if node.is_gelu and (x := node.inputs[0]) in linears}
    gelus = {linear: at for linear, at in gelus.items() if uses[nodes[linear].one(_OUTPUT)] == 1}
    parts = []
    for at, (_, raw, _) in enumerate(fields):
        node = nodes.get(at)
        if at in gelus.values():
            continue
        if node is not None and (node.is_linear or node.is_attention):
            parts.append(_field(_NODE, node.written(nodes[gelus[at]] if at in gelus else None)))
        else:
            parts.append(raw)
    return b"".join(parts)


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, the whole field, and its bytes if it holds bytes."""
    at = 0
    while at < len(message):
        begin = at
        key, at = _varint(message, at)
        size = {0: 0, 1: 8, 5: 4}.get(key & 7, 0)
        if key & 7 in (0, _BYTES):
            value, at = _varint(message, at)
            size = value if key & 7 == _BYTES else 0
        content = message[at : at + size] if key & 7 == _BYTES else b""
        at += size
        yield key >> 3, message[begin:at], content


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _field(number: int, content: bytes) -> bytes:
    size, encoded = len(content), bytearray([number << 3 | _BYTES])
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded) + content


# The attribute gelu = 1: its name, its integer, its type.
_GELU = _field(1, b"gelu") + bytes([3 << 3, 1, 0xA0, 0x01, 2])
