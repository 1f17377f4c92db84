"""Reads and changes .onnx files on their own bytes: the base install brings no onnx.

Of the format (https://protobuf.dev/programming-guides/encoding, onnx.proto) only what a node, a value and a model are
made of; whatever else a file holds is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_INTEGER, _BYTES = 0, 2  # wire types of fields
# Numbers of fields: of a model, of a graph, of a tensor, of a value, of a node.
GRAPH, OPSET = 7, 8
NODE, INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, VALUE_INFO = 1, 5, 11, 12, 13
_TENSOR_NAME, _VALUE_NAME = 8, 1
_ONE_INTEGER, _INTEGERS = 3, 8  # of an attribute
INPUT, OUTPUT, OPERATOR, ATTRIBUTE, DOMAIN = 1, 2, 4, 5, 7


@dataclass(frozen=True)
class Field:
    """One field of a message: its number, the whole of it, and the bytes or the integer that it holds."""

    number: int
    raw: bytes
    content: bytes
    integer: int = 0

    @property
    def name(self) -> bytes:
        """Of an initialiser or a value."""
        return Message(self.content).one(_TENSOR_NAME if self.number == INITIALIZER else _VALUE_NAME)


class Message:
    """A message as its fields, in order."""

    def __init__(self, content: bytes) -> None:
        self.fields = list(_fields(content))

    def all(self, number: int) -> list[bytes]:
        """What fields of a number hold."""
        return [field.content for field in self.fields if field.number == number]

    def one(self, number: int) -> bytes:
        """What the first field of a number holds; nothing where there is none."""
        return next((field.content for field in self.fields if field.number == number), b"")

    @property
    def inputs(self) -> list[bytes]:
        """Of a node."""
        return self.all(INPUT)

    @property
    def outputs(self) -> list[bytes]:
        """Of a node."""
        return self.all(OUTPUT)

    @property
    def kind(self) -> tuple[bytes, bytes]:
        """Domain and operator of a node."""
        return self.one(DOMAIN), self.one(OPERATOR)

    @property
    def integers(self) -> dict[bytes, list[int]]:
        """The attributes of a node that are integers, one or several, by name."""
        found = {}
        for content in self.all(ATTRIBUTE):
            attribute = Message(content)
            several = [field for field in attribute.fields if field.number == _INTEGERS]
            packed = [value for field in several for value in _varints(field.content)]
            alone = [field.integer for field in several if not field.content]
            one = [field.integer for field in attribute.fields if field.number == _ONE_INTEGER]
            found[attribute.one(1)] = packed or alone or one
        return found


def graph_of(model: bytes) -> Message | None:
    """The graph of a model."""
    graphs = Message(model).all(GRAPH)
    return Message(graphs[0]) if len(graphs) == 1 else None


def with_graph(model: bytes, fields: Iterable[bytes]) -> bytes:
    """The model with another graph, given as whole fields."""
    graph = field(GRAPH, b"".join(fields))
    return b"".join(graph if own.number == GRAPH else own.raw for own in _fields(model))


def field(number: int, content: bytes) -> bytes:
    """A whole field that holds bytes; numbers are below 16."""
    size, encoded = len(content), bytearray([number << 3 | _BYTES])
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded) + content


def _fields(message: bytes) -> Iterator[Field]:
    at = 0
    while at < len(message):
        begin = at
        key, at = _varint(message, at)
        kind, value = key & 7, 0
        if kind in (_INTEGER, _BYTES):
            value, at = _varint(message, at)
        size = value if kind == _BYTES else {1: 8, 5: 4}.get(kind, 0)
        content = message[at : at + size] if kind == _BYTES else b""
        at += size
        yield Field(key >> 3, message[begin:at], content, value if kind == _INTEGER else 0)


def _varints(packed: bytes) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
