"""Removes operators that only look at the same numbers in another way."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from sora_export.graph_edit import GraphEditor, constant, dims_of, unshaped

_EXACT_THROUGH_FLOAT = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT}


def clean_views(graph: ir.Graph) -> bool:
    """Folds chains of Reshape, Transpose, Cast, Slice and Concat; returns whether anything changed.

    Squeeze, Unsqueeze and Flatten, and a Transpose that only moves axes of length 1, become Reshape,
    of which a chain is one; an index becomes a Slice.
    """
    editor, changed = GraphEditor(graph), False
    for node in list(graph):
        rule = _RULES.get(node.op_type) if node.domain == "" and node.graph is not None else None
        if rule is not None and len(node.outputs) == 1 and dims_of(node.outputs[0]) is not None:
            new = rule(editor, node)
            if new is not None:
                changed |= editor.replace(node.outputs[0], new)
    return changed


def _reshape(editor: GraphEditor, node: ir.Node) -> ir.Value | None:
    value, dims = node.inputs[0], dims_of(node.outputs[0])
    assert value is not None and dims is not None
    source = unshaped(value)
    if dims_of(source) is None:
        return None
    direct = node.op_type == "Reshape" and source is value and node.inputs[1] is editor.ints(dims)
    return None if direct and dims_of(source) != dims else editor.reshape(node, value, dims)


def _expand(editor: GraphEditor, node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if dims_of(node.inputs[0]) == dims_of(node.outputs[0]) else None


def _identity(editor: GraphEditor, node: ir.Node) -> ir.Value | None:
    return node.inputs[0]


def _cast(editor: GraphEditor, node: ir.Node) -> ir.Value | None:
    value, to = node.inputs[0], node.outputs[0].dtype
    assert value is not None
    if value.dtype == to:
        return value
    before = value.producer()
    if before is not None and before.op_type == "Cast" and value.dtype in _EXACT_THROUGH_FLOAT:
        origin = before.inputs[0]
        exact = value.dtype == ir.DataType.FLOAT and origin is not None and origin.dtype in _EXACT_THROUGH_FLOAT
        return origin if exact and origin is not None and origin.dtype == to else None
    return None


def _transpose(editor: GraphEditor, node: ir.Node) -> ir.Value | None:
    value, dims = node.inputs[0], dims_of(node.outputs[0])
    assert value is not None and dims is not None
    order = _permutation(node, len(dims))
    before = value.producer()
    if before is not None and before.op_type == "Transpose" and before.inputs[0] is not None:
        first = _permutation(before, len(dims))
        order = tuple(first[axis] for axis in order)
        value = before.inputs[0]
    source = dims_of(value)
    if source is None:
        return None
    moved = [axis for axis in order if source[axis] != 1]
    if moved == sorted(moved):
        return editor.reshape(node, value, dims)
    return None if value is node.inputs[0] else editor.node(node, "Transpose", [value], dims, {"perm": order})


def _permutation(node: ir.Node, rank: int) -> tuple[int, ...]:
    given = node.attributes.get("perm")
    return tuple(given.as_ints()) if given is not None else tuple(reversed(range(rank)))


def _gather(editor: GraphEditor, node: ir.Node) -> ir.Value | None:
    """A constant index picks a Slice of one, which a following Unsqueeze leaves as it is."""
    data, index = node.inputs[0], constant(node.inputs[1])
    source, dims = dims_of(data), dims_of(node.outputs[0])
    if data is None or index is None or index.size != 1 or source is None or dims is None:
        return None
    axis = _axis(node, len(source), default=0)
    start = int(index.ravel()[0]) % source[axis]
    return editor.reshape(node, _sliced(editor, node, data, axis, start, start + 1), dims)


def _slice(editor: GraphEditor, node: ir.Node) -> ir.Value | None:
    """A whole tensor is no slice, and a part of a Concat is a part of what was joined."""
    data, bounds = node.inputs[0], slice_bounds(node)
    source = dims_of(data)
    if data is None or bounds is None or source is None:
        return None
    axis, start, end = bounds
    if end - start == source[axis]:
        return data
    joined = data.producer()
    if joined is None or joined.op_type != "Concat" or _axis(joined, len(source)) != axis:
        return None
    offset = 0
    for part in joined.inputs:
        dims = dims_of(part)
        if part is None or dims is None:
            return None
        if offset <= start and end <= offset + dims[axis]:
            return _sliced(editor, node, part, axis, start - offset, end - offset)
        offset += dims[axis]
    return None


def slice_bounds(node: ir.Node) -> tuple[int, int, int] | None:
    """(axis, start, end) of a Slice in steps of one along one axis, counted from the front."""
    source = dims_of(node.inputs[0])
    numbers = [constant(value) for value in node.inputs[1:]]
    if source is None or len(numbers) < 3 or any(n is None or n.size != 1 for n in numbers):
        return None
    start, end, axis, *step = [int(n.ravel()[0]) for n in numbers if n is not None]
    if step not in ([], [1]):
        return None
    axis %= len(source)
    low, high = (min(max(at + source[axis] if at < 0 else at, 0), source[axis]) for at in (start, end))
    return axis, low, high


def _sliced(editor: GraphEditor, before: ir.Node, data: ir.Value, axis: int, start: int, end: int) -> ir.Value:
    source = dims_of(data)
    assert source is not None
    if end - start == source[axis]:
        return data
    dims = (*source[:axis], end - start, *source[axis + 1 :])
    return editor.node(before, "Slice", [data, *(editor.ints([n]) for n in (start, end, axis))], dims)


def _concat(editor: GraphEditor, node: ir.Node) -> ir.Value | None:
    if len(node.inputs) == 1:
        return node.inputs[0]
    return _moved_on(editor, node) or _stacked(editor, node)


def _moved_on(editor: GraphEditor, node: ir.Node) -> ir.Value | None:
    """The end of `a` joined with `b` is the end of `a` joined with `b`, if that exists too.

    This is how a convolution's cache moves on: one Slice of what the convolution reads.
    """
    head, dims = node.inputs[0], dims_of(node.outputs[0])
    cut = head.producer() if head is not None else None
    if cut is None or cut.op_type != "Slice" or dims is None:
        return None
    bounds, whole = slice_bounds(cut), cut.inputs[0]
    axis, source = _axis(node, len(dims)), dims_of(whole)
    if whole is None or source is None or bounds is None or bounds[0] != axis or bounds[2] != source[axis]:
        return None
    for use in whole.uses():
        other = use.node
        same = other.op_type == "Concat" and other.inputs[0] is whole and other.inputs[1:] == node.inputs[1:]
        if same and _axis(other, len(dims)) == axis:
            # Perhaps before `other`: whoever calls puts the nodes in order.
            return _sliced(editor, node, other.outputs[0], axis, bounds[1], dims[axis] + bounds[1])
    return None


def _stacked(editor: GraphEditor, node: ir.Node) -> ir.Value | None:
    """All the slices of one axis, joined along another, are a Transpose."""
    dims, whole, from_axis = dims_of(node.outputs[0]), None, -1
    assert dims is not None
    to_axis = _axis(node, len(dims))
    for index, part in enumerate(node.inputs):
        cut = unshaped(part).producer() if part is not None else None
        bounds = slice_bounds(cut) if cut is not None and cut.op_type == "Slice" else None
        if cut is None or bounds is None or bounds[1:] != (index, index + 1):
            return None
        if (whole or cut.inputs[0]) is not cut.inputs[0] or (index and bounds[0] != from_axis):
            return None
        whole, from_axis = cut.inputs[0], bounds[0]
    source = dims_of(whole)
    if whole is None or source is None or source[from_axis] != len(node.inputs) or len(source) != len(dims):
        return None
    order = [axis for axis in range(len(dims)) if axis != from_axis]
    order.insert(to_axis, from_axis)
    if tuple(source[axis] for axis in order) != dims:
        return None
    return editor.node(node, "Transpose", [whole], dims, {"perm": order})


def _axis(node: ir.Node, rank: int, default: int | None = None) -> int:
    given = node.attributes.get("axis")
    axis = given.as_int() if given is not None else default
    assert axis is not None
    return axis % rank


_Rule = Callable[[GraphEditor, ir.Node], ir.Value | None]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten"), _reshape),
    "Identity": _identity,
    "Expand": _expand,
    "Cast": _cast,
    "Transpose": _transpose,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
}
