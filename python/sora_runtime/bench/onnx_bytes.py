"""Writes small ONNX graphs without the onnx package: the few messages of its protobuf format that they need.

Field numbers are those of onnx.proto (github.com/onnx/onnx, IR version 10).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Attribute = int | float | str | Sequence[int]

_VARINT, _LENGTH, _FIXED32 = 0, 2, 5
_ELEMENT_TYPES = {"float32": 1, "int8": 3, "int64": 7}
_FLOAT, _INT, _STRING, _INTS = 1, 2, 3, 7
OPSET, MICROSOFT_OPSET, IR_VERSION = 23, 1, 10


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers are written as 64 bits
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _message(field: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return _varint(field << 3 | _LENGTH) + _varint(len(body)) + body


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, float):
        body, kind = _varint(2 << 3 | _FIXED32) + struct.pack("<f", value), _FLOAT
    elif isinstance(value, int):
        body, kind = _number(3, value), _INT
    elif isinstance(value, str):
        body, kind = _text(4, value), _STRING
    else:
        body, kind = b"".join(_number(8, item) for item in value), _INTS
    return _message(5, _text(1, name), body, _number(20, kind))


def _value_info(field: int, name: str, shape: Sequence[int], dtype: str) -> bytes:
    dims = b"".join(_message(1, _number(1, size)) for size in shape)
    tensor = _message(1, _number(1, _ELEMENT_TYPES[dtype]), _message(2, dims))
    return _message(field, _text(1, name), _message(2, tensor))


class GraphBytes:
    """A graph under construction; values are known by their names."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._initializers: list[bytes] = []
        self._ends: list[bytes] = []
        self._count = 0

    @property
    def count(self) -> int:
        """Values that have got a name."""
        return self._count

    def input(self, name: str, shape: Sequence[int], dtype: str = "float32") -> str:
        """A value that the caller gives."""
        self._ends.append(_value_info(11, name, shape, dtype))
        return name

    def output(self, name: str, shape: Sequence[int], dtype: str = "float32") -> None:
        """Makes a value one that the caller gets."""
        self._ends.append(_value_info(12, name, shape, dtype))

    def constant(self, array: NDArray[Any]) -> str:
        """A weight, or a shape or axis that an operator takes as an input."""
        name = self._name("constant")
        dims = b"".join(_number(1, size) for size in array.shape)
        kind = _number(2, _ELEMENT_TYPES[array.dtype.name])
        self._initializers.append(
            _message(5, dims, kind, _text(8, name), _message(9, np.ascontiguousarray(array).tobytes()))
        )
        return name

    def integers(self, *values: int) -> str:
        """A one-dimensional int64 constant."""
        return self.constant(np.array(values, np.int64))

    def node(
        self, operator: str, *inputs: str, domain: str = "", output: str | None = None, **attributes: Attribute
    ) -> str:
        """An operator; an input of "" is left out. Returns the name of its one output."""
        name = output or self._name(operator)
        ends = [*(_text(1, value) for value in inputs), _text(2, name)]
        settings = [_attribute(key, value) for key, value in attributes.items()]
        self._nodes.append(_message(1, *ends, _text(4, operator), *settings, _text(7, domain)))
        return name

    def model(self) -> bytes:
        """The file's content."""
        graph = _message(7, *self._nodes, _text(2, "micro"), *self._initializers, *self._ends)
        domains = (("", OPSET), ("com.microsoft", MICROSOFT_OPSET))
        opsets = [_message(8, _text(1, domain), _number(2, version)) for domain, version in domains]
        return b"".join([_number(1, IR_VERSION), graph, *opsets])

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"
