"""Runs what lies between linear layers on their rows, without the batch axis of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from sora_export.graph_edit import Dims, GraphEditor, dims_of, only_user, unshaped

_ELEMENTWISE = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Where", "Clip", "Cast"),
    *("Gelu", "Sigmoid", "Tanh", "Relu", "Exp", "Log", "Sqrt", "Neg", "Abs", "Erf", "Sin", "Cos", "HardSigmoid"),
}
_ALONG_CHANNELS = {"LayerNormalization", "RMSNormalization", "Softmax"}


def drop_batch_axis(graph: ir.Graph) -> None:
    """Lets operators on [1, rows, channels] work on [rows, channels], as `Gemm` takes and gives it.

    Without this every linear layer lies between two Reshape nodes. Only what already has its rows at
    hand is changed, so that no Reshape is added but at the border to something else.
    """
    _Rows(graph).run()


class _Rows:
    """One pass in the order of the graph. `rows` holds the value that stands for another without leading ones."""

    def __init__(self, graph: ir.Graph) -> None:
        self.editor = GraphEditor(graph)
        self.rows: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        for node in list(self.editor.graph):
            if node.domain == "" and node.graph is not None and dims_of(node.outputs[0]) is not None:
                if node.op_type in _ELEMENTWISE:
                    self._elementwise(node)
                elif node.op_type in _ALONG_CHANNELS:
                    self._along_channels(node)
                elif node.op_type == "Split" and not self._drop_inner_ones(node):
                    self._split(node)
                elif node.op_type == "Concat":
                    self._concat(node)
                elif node.op_type == "Transpose":
                    self._transpose(node)

    def _at_hand(self, value: ir.Value | None) -> ir.Value | None:
        """`value` without its leading ones, if nothing has to be added for it."""
        dims = dims_of(value)
        if value is None or dims is None:
            return None
        if value in self.rows:
            return self.rows[value]
        if len(dims) < 3:
            return value
        source = unshaped(value)
        return source if source is not value and dims_of(source) in _without_ones(dims) else None

    def _made(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """`value` without its leading ones, through a new Reshape if need be."""
        found = self._at_hand(value)
        if found is None:
            dims = dims_of(value)
            assert dims is not None
            found = self.rows[value] = self.editor.reshape(before, value, _without_ones(dims)[0])
        return found

    def _is_target(self, output: ir.Value) -> bool:
        dims = dims_of(output)
        return dims is not None and len(dims) >= 3 and bool(_without_ones(dims))

    def _elementwise(self, node: ir.Node) -> None:
        output = node.outputs[0]
        large = [value for value in node.inputs if len(dims_of(value) or ()) >= 3]
        if not self._is_target(output) or all(self._at_hand(value) is None for value in large):
            return
        alike = all(self._at_hand(v) is not None and dims_of(v) == dims_of(output) for v in large)
        if (dims_of(output) or ())[0] != 1 and not alike:
            return  # rows of several groups are not spread over the others' rows
        if any(value is not None and dims_of(value) is None for value in node.inputs):
            return
        if any(value is not None and value.is_initializer() for value in large):
            return  # it would take a Reshape of the weight
        small = [None if v is None else self._at_hand(v) for v in node.inputs]
        for given, got in zip(node.inputs, small, strict=True):
            if given is not None and got is None and not _without_ones(dims_of(given) or ()):
                return
        inputs = [None if v is None else self._made(v, node) for v in node.inputs]
        dims = _broadcast(inputs)
        if dims in _without_ones(dims_of(output) or ()):
            self._put(node, inputs, [dims])

    def _along_channels(self, node: ir.Node) -> None:
        first, output = self._at_hand(node.inputs[0]), node.outputs[0]
        axis, rank = node.attributes.get("axis"), len(dims_of(output) or ())
        if not self._is_target(output) or first is None or len(dims_of(first) or ()) != 2 or len(node.outputs) > 1:
            return
        if (dims_of(output) or ())[0] != 1:
            return  # what follows scales and shifts by group
        if (axis.as_int() if axis is not None else -1) % rank != rank - 1:
            return
        self._put(node, [first, *node.inputs[1:]], [dims_of(first) or ()], {"axis": -1})

    def _split(self, node: ir.Node) -> None:
        """Along channels as it is; into single rows as a Split of what they are one after the other."""
        value, parts = node.inputs[0], [dims_of(part) or () for part in node.outputs]
        dims, given = dims_of(value), node.attributes.get("axis")
        if value is None or dims is None or len(dims) < 3 or not _without_ones(dims) or any(len(p) < 3 for p in parts):
            return
        axis = (given.as_int() if given is not None else 0) % len(dims)
        found = self._at_hand(value)
        if axis == len(dims) - 1 and found is not None and len(dims_of(found) or ()) == 2:
            rows = (dims_of(found) or ())[:-1]
            outputs = [(*rows, part[-1]) for part in parts]
            self._put(node, [found, *node.inputs[1:]], outputs, {"axis": -1})
        elif axis == len(dims) - 2 and set(dims[:-2]) == {1} and all(part[axis] == 1 for part in parts):
            flat = self.editor.reshape(node, value, (dims[-2] * dims[-1],))
            attributes = {"axis": 0, "num_outputs": len(parts)}
            self._put(node, [flat], [(dims[-1],)] * len(parts), attributes)

    def _drop_inner_ones(self, node: ir.Node) -> bool:
        """Splits [groups, n, channels] in the place of [groups, 1, n, channels], of a sum if it is one.

        Only where every part is reshaped anyway, which then has nothing to do.
        """
        value, given = node.inputs[0], node.attributes.get("axis")
        dims, add = dims_of(value), value.producer() if value is not None else None
        users = [use.node.op_type for output in node.outputs for use in output.uses()]
        if value is None or dims is None or len(dims) < 4 or dims[0] == 1 or set(users) != {"Reshape"}:
            return False
        axis = (given.as_int() if given is not None else 0) % len(dims)
        kept = [i for i, size in enumerate(dims) if size != 1 or i == axis]
        if len(kept) == len(dims) or any(len(dims_of(part) or ()) != len(dims) for part in node.outputs):
            return False
        small = tuple(dims[i] for i in kept)
        terms = add.inputs if add is not None and add.op_type == "Add" and only_user(value) is node else ()
        if add is not None and terms and all(len(dims_of(term) or ()) == len(dims) for term in terms):
            sizes = [tuple((dims_of(term) or ())[i] for i in kept) for term in terms]
            parts = [self.editor.reshape(add, term, size) for term, size in zip(terms, sizes, strict=True) if term]
            narrow = self.editor.node(node, "Add", parts, small)
        else:
            narrow = self.editor.reshape(node, value, small)
        outputs = [tuple((dims_of(part) or ())[i] for i in kept) for part in node.outputs]
        self._put(node, [narrow, *node.inputs[1:]], outputs, {"axis": kept.index(axis)})
        return True

    def _concat(self, node: ir.Node) -> None:
        given, dims = node.attributes.get("axis"), dims_of(node.outputs[0])
        found = [self._at_hand(value) for value in node.inputs]
        if given is None or dims is None or not self._is_target(node.outputs[0]):
            return
        if any(value is None or len(dims_of(value) or ()) != 2 for value in found):
            return
        from_end = given.as_int() % len(dims) - len(dims)
        if from_end == -1 or (from_end == -2 and dims[0] == 1):
            self._put(node, found, [_without_ones(dims)[0]], {"axis": from_end})

    def _transpose(self, node: ir.Node) -> None:
        """[1, a, b] to [1, b, a], if it was reshaped before, in which case the batch axis goes there."""
        value, dims, perm = node.inputs[0], dims_of(node.outputs[0]), node.attributes.get("perm")
        if value is None or dims is None or len(dims) != 3 or dims[0] != 1 or 1 in dims[1:]:
            return
        if perm is None or tuple(perm.as_ints()) != (0, 2, 1) or unshaped(value) is value or only_user(value) is None:
            return
        flat = self.editor.reshape(node, value, (dims[2], dims[1]))
        self._put(node, [flat], [dims[1:]], {"perm": (1, 0)})

    def _put(
        self,
        node: ir.Node,
        inputs: Sequence[ir.Value | None],
        dims: Sequence[Dims],
        changes: Mapping[str, int | Sequence[int]] | None = None,
    ) -> None:
        """Puts the operator on rows in the place of `node`, and a Reshape for who still needs the axis."""
        attributes = {name: attribute.value for name, attribute in node.attributes.items()} | dict(changes or {})
        new = ir.node(node.op_type, inputs, attributes, num_outputs=len(node.outputs))
        self.editor.graph.insert_before(node, new)
        for old, value, shape in zip(node.outputs, new.outputs, dims, strict=True):
            value.shape, value.type = ir.Shape(shape), old.type
            old_dims = dims_of(old)
            assert old_dims is not None
            whole = self.editor.node(node, "Reshape", [value, self.editor.ints(old_dims)], old_dims)
            self.editor.replace(old, whole)
            self.rows[whole] = value


def _broadcast(values: Sequence[ir.Value | None]) -> Dims | None:
    try:
        return np.broadcast_shapes(*(dims_of(value) or () for value in values if value is not None))
    except ValueError:
        return None


def _without_ones(dims: Dims) -> list[Dims]:
    """The shapes of at most two axes that stand for [1, rows, channels] or [groups, rows, channels]."""
    if len(dims) == 3 and dims[0] != 1:
        return [(dims[0] * dims[1], dims[2])]
    rest = dims
    while len(rest) > 1 and rest[0] == 1:
        rest = rest[1:]
    if len(rest) > 2 or len(dims) < 3:
        return []
    return [rest] if len(rest) == 2 else [rest, (1, *rest)]
