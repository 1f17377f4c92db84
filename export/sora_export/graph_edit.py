"""Small edits of an ONNX graph with static shapes: constants, new nodes, replaced values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

Dims = tuple[int, ...]


class GraphEditor:
    """Makes nodes whose outputs have shapes, and puts values in the place of others."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph

    def ints(self, values: Sequence[int]) -> ir.Value:
        """A one-dimensional int64 constant; the same numbers are the same initialiser."""
        name = "ints." + "_".join(str(value) for value in values)
        if name not in self.graph.initializers:
            tensor = ir.tensor(list(values), dtype=ir.DataType.INT64, name=name)
            shape, kind = ir.Shape([len(values)]), ir.TensorType(ir.DataType.INT64)
            self.graph.register_initializer(ir.Value(name=name, shape=shape, type=kind, const_value=tensor))
        return self.graph.initializers[name]

    def node(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        dims: Sequence[int],
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        """Inserts a node with one output of shape `dims` and the type of its first input."""
        first = inputs[0]
        assert first is not None
        node = ir.node(op_type, inputs, attributes)
        self.graph.insert_before(before, node)
        output = node.outputs[0]
        output.shape, output.type = ir.Shape(dims), first.type
        return output

    def reshape(self, before: ir.Node, value: ir.Value, dims: Dims) -> ir.Value:
        """`value` in the shape `dims`: what it was reshaped from, if that fits, or one new Reshape."""
        source = unshaped(value)
        if dims_of(source) == dims:
            return source
        return self.node(before, "Reshape", [source, self.ints(dims)], dims)

    def replace(self, old: ir.Value, new: ir.Value) -> bool:
        """Lets all users of `old` use `new`; False where a graph output cannot become `new`."""
        if old is new:
            return False
        if old.is_graph_output():
            if new.producer() is None or new.is_graph_output():
                return False
            name, old.name = old.name, None
            new.name = name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.discard(old.producer())
        return True

    def discard(self, node: ir.Node | None) -> None:
        """Removes a node that nothing uses any more, and then those that only it used."""
        if node is None or node.graph is None:
            return
        if any(output.is_graph_output() or any(output.uses()) for output in node.outputs):
            return
        producers = [value.producer() for value in node.inputs if value is not None]
        self.graph.remove(node, safe=True)
        for producer in producers:
            self.discard(producer)


def dims_of(value: ir.Value | None) -> Dims | None:
    """The static shape, or None if any of it is unknown."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(size) for size in value.shape.numpy())


def unshaped(value: ir.Value) -> ir.Value:
    """What `value` was before the Reshape nodes that led to it."""
    node = value.producer()
    while node is not None and node.op_type == "Reshape" and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def constant(value: ir.Value | None, limit: int = 1024) -> np.ndarray[Any, Any] | None:
    """The numbers of a constant of at most `limit` elements that lies in the graph itself."""
    dims = dims_of(value)
    if value is None or value.const_value is None or isinstance(value.const_value, ir.ExternalTensor):
        return None
    if dims is None or math.prod(dims) > limit:
        return None
    return value.const_value.numpy()


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that uses `value`, if there is one only and `value` is no output of the graph."""
    users = list(value.uses())
    return users[0].node if len(users) == 1 and not value.is_graph_output() else None
