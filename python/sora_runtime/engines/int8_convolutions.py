"""Finds convolutions that are quantised before and after, as int8 decoders have them, to be one node each."""

from __future__ import annotations

from collections.abc import Mapping

from . import graph_bytes as onnx
from .graph_bytes import Message


def convolutions(nodes: Mapping[int, Message], uses: Mapping[bytes, int], domain: str) -> dict[int, bytes | None]:
    """The convolution as a node of another domain in place of each that is quantised; what goes with it, as None.

    Its inputs are what was quantised, the int8 weights, their scales and the bias.

    Args:
        nodes: of a graph, by any number.
        uses: how often a name is read, outputs of the graph included.
        domain: of the new nodes.
    """
    makers = {name: at for at, node in nodes.items() for name in node.outputs}
    readers = {name: at for at, node in nodes.items() for name in node.inputs}

    def only_maker(name: bytes, operator: bytes) -> int | None:
        at = makers.get(name)
        return at if at is not None and nodes[at].kind == (b"", operator) and uses[name] == 1 else None

    def only_reader(name: bytes, operator: bytes) -> int | None:
        at = readers.get(name)
        return at if at is not None and nodes[at].kind == (b"", operator) and uses[name] == 1 else None

    changed: dict[int, bytes | None] = {}
    for at, node in nodes.items():
        if node.kind != (b"", b"Conv") or not _keeps_its_size(node):
            continue
        widened, weights = (only_maker(name, b"DequantizeLinear") for name in node.inputs[:2])
        narrowed = None if widened is None else only_maker(nodes[widened].inputs[0], b"QuantizeLinear")
        after = only_reader(node.outputs[0], b"QuantizeLinear")
        end = None if after is None else only_reader(nodes[after].outputs[0], b"DequantizeLinear")
        around = (narrowed, widened, weights, after, end)
        found = [index for index in around if index is not None]
        if len(found) < len(around) or not _by_output(nodes[found[2]]):
            continue
        narrow, _, weight, _, last = found
        inputs = [nodes[narrow].inputs[0], *nodes[weight].inputs, *node.inputs[2:]]
        changed |= dict.fromkeys(found)
        changed[at] = b"".join(
            [
                *(onnx.field(onnx.INPUT, name) for name in inputs),
                onnx.field(onnx.OUTPUT, nodes[last].outputs[0]),
                onnx.field(onnx.OPERATOR, b"Conv"),
                onnx.field(onnx.DOMAIN, domain.encode()),
            ]
        )
    return changed


def _by_output(weights: Message) -> bool:
    """Whether int8 weights have a scale for each output, and no zero points."""
    return len(weights.inputs) == 2 and weights.integers.get(b"axis") == [0]


def _keeps_its_size(conv: Message) -> bool:
    """Whether it has a stride of 1, one group, borders that keep rows and columns, and none in time."""
    integers = conv.integers
    kernel, pads = integers.get(b"kernel_shape", []), integers.get(b"pads", [])
    steps = [*integers.get(b"strides", []), *integers.get(b"dilations", []), *integers.get(b"group", [])]
    half = [size // 2 for size in kernel[-2:]]
    borders = [*[0] * (len(kernel) - 2), *half]
    odd = all(size % 2 == 1 for size in kernel[-2:])
    return len(kernel) in (2, 3) and odd and pads == borders * 2 and all(step == 1 for step in steps)
