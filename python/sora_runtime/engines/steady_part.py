"""Splits a graph into what follows from inputs that seldom change, and the rest.

A transformer's keys and values of the text are the same at every step of a clip; in one graph with the rest they are
computed at every step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from . import graph_bytes as onnx
from .graph_bytes import Field, Message

_PRODUCTS = {b"Gemm", b"MatMul", b"DynamicQuantizeMatMul", b"Conv", b"Attention", b"MultiHeadAttention"}
_GRAPHS = {b"If", b"Loop", b"Scan"}  # hold graphs, which may read what their inputs do not name


@dataclass(frozen=True)
class Split:
    """Two models in place of one.

    Attributes:
        steady: from inputs that seldom change to the values that the rest reads.
        rest: from these values and the other inputs to the outputs.
    """

    steady: bytes
    rest: bytes


def split(model: bytes, varying: Collection[str]) -> Split | None:
    """Split a model.

    Args:
        model: an .onnx file; values between the parts must have their shapes in it.
        varying: names of the inputs that differ at every evaluation; the others are the steady ones.

    Returns:
        None where nothing that is worth a model of its own follows from the steady inputs alone.
    """
    graph = onnx.graph_of(model)
    if graph is None:
        return None
    inputs = {field.name: field for field in graph.fields if field.number == onnx.GRAPH_INPUT}
    names = inputs.keys() - {name.encode() for name in varying}
    nodes = [(field, Message(field.content)) for field in graph.fields if field.number == onnx.NODE]
    follows = _sources(nodes, graph, names)
    first = [pair for pair in nodes if follows[id(pair[1])] == {True}]
    rest = [pair for pair in nodes if False in follows[id(pair[1])]]
    constant = [pair for pair in nodes if not follows[id(pair[1])]]
    if not any(node.kind[1] in _PRODUCTS for _, node in first) or any(node.kind[1] in _GRAPHS for _, node in nodes):
        return None
    values = {field.name: field for field in graph.fields if field.number == onnx.VALUE_INFO}
    given = {name for _, node in first for name in node.outputs}
    results = {field.name for field in graph.fields if field.number == onnx.GRAPH_OUTPUT}
    between = sorted(given & {name for _, node in rest for name in node.inputs})
    if given & results or not set(between) <= values.keys():
        return None
    used_late = {name for _, node in rest for name in node.inputs}
    return Split(
        _model(
            model, graph, [*constant, *first],
            [field.raw for name, field in inputs.items() if name in names],
            [onnx.field(onnx.GRAPH_OUTPUT, values[name].content) for name in between],
        ),
        _model(
            model, graph, [*constant, *rest],
            [
                *(field.raw for name, field in inputs.items() if name not in names or name in used_late),
                *(onnx.field(onnx.GRAPH_INPUT, values[name].content) for name in between),
            ],
            [field.raw for field in graph.fields if field.number == onnx.GRAPH_OUTPUT],
        ),
    )  # fmt: skip


def _sources(nodes: list[tuple[Field, Message]], graph: Message, steady: AbstractSet[bytes]) -> Mapping[int, set[bool]]:
    """By node: whether steady inputs (True), others (False), both or none are behind it."""
    behind: dict[bytes, set[bool]] = {
        field.name: {field.name in steady} for field in graph.fields if field.number == onnx.GRAPH_INPUT
    }
    found = {}
    for _, node in nodes:  # an ONNX graph lists its nodes in order
        found[id(node)] = {kind for name in node.inputs for kind in behind.get(name, ())}
        behind.update((name, found[id(node)]) for name in node.outputs)
    return found


def _model(
    model: bytes, graph: Message, nodes: list[tuple[Field, Message]], inputs: list[bytes], outputs: list[bytes]
) -> bytes:
    """The model of some nodes of the graph, with the initialisers and constants that they read."""
    needed = {name for _, node in nodes for name in node.inputs}
    inside = {name for _, node in nodes for name in node.outputs}
    kept = {onnx.NODE, onnx.INITIALIZER, onnx.GRAPH_INPUT, onnx.GRAPH_OUTPUT, onnx.VALUE_INFO}
    weights = [field.raw for field in graph.fields if field.number == onnx.INITIALIZER and field.name in needed]
    shapes = [field.raw for field in graph.fields if field.number == onnx.VALUE_INFO and field.name in inside & needed]
    others = [field.raw for field in graph.fields if field.number not in kept]
    return onnx.with_graph(model, [*others, *(field.raw for field, _ in nodes), *weights, *shapes, *inputs, *outputs])
