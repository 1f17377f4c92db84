"""Runs half-precision graphs on a processor that has no half: float32 arithmetic, rounded where the graph rounds.

ONNX Runtime has no bfloat16 kernels on the CPU, so what an engine for a GPU will answer is evaluated
here: every operator in float32, as tensor cores accumulate, and its results rounded to the type that
the graph gives them. Q/DQ nodes run as they are.
"""

from __future__ import annotations

import onnx_ir as ir

from sora_export.emulation_fp4 import emulate_fp4
from sora_export.half_precision import is_stored_cast
from sora_export.mask_rows import full_masks

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# These move values; what is rounded already stays so.
_MOVES = {
    "Reshape", "Transpose", "Concat", "Slice", "Split", "Squeeze", "Unsqueeze", "Gather", "Expand", "Identity", "Pad",
    "Flatten", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip


def emulated(model: ir.Model) -> ir.Model:
    """A copy of `model` that computes in float32 and rounds every result that is half to half and back.

    Inputs and outputs become float32. Weights stay where they are, but 4-bit ones, which become float32 in the graph.
    """
    copy = model.clone()
    graph = copy.graph
    emulate_fp4(graph)
    full_masks(copy)
    copy.opset_imports.pop("trt", None)
    for value in graph.inputs:
        if value.dtype in _HALVES:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for value in list(graph.initializers.values()):
        if value.dtype in _HALVES:
            _widen_initializer(graph, value)
    for node in list(graph):
        _emulate(graph, node)
    return copy


def _widen_initializer(graph: ir.Graph, value: ir.Value) -> None:
    users = [use for use in value.uses() if not is_stored_cast(use.node)]
    if not users:
        return
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{value.name}.wide")
    cast.outputs[0].shape, cast.outputs[0].type = value.shape, ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(graph[0], cast)
    for use in users:
        use.node.replace_input_with(use.idx, cast.outputs[0])


def _emulate(graph: ir.Graph, node: ir.Node) -> None:
    if node.op_type == "Cast" and node.name is not None and node.name.endswith(".wide"):
        return
    target = node.attributes.get("to") or node.attributes.get("output_dtype")
    for output in node.outputs:
        half = output.dtype
        if half not in _HALVES:
            continue
        if target is not None:
            node.attributes[target.name] = ir.AttrInt64(target.name, ir.DataType.FLOAT)
        output.type = ir.TensorType(ir.DataType.FLOAT)
        if node.op_type not in _MOVES:
            _round(graph, node, output, half)


def _round(graph: ir.Graph, node: ir.Node, output: ir.Value, half: ir.DataType) -> None:
    users = list(output.uses())
    down = ir.node("Cast", [output], {"to": half})
    up = ir.node("Cast", [down.outputs[0]], {"to": ir.DataType.FLOAT})
    down.outputs[0].shape, down.outputs[0].type = output.shape, ir.TensorType(half)
    rounded = up.outputs[0]
    rounded.shape, rounded.type = output.shape, output.type
    graph.insert_after(node, [down, up])
    for use in users:
        use.node.replace_input_with(use.idx, rounded)
    for index, value in enumerate(graph.outputs):
        if value is output:
            rounded.name, output.name = output.name, f"{output.name}.exact"
            graph.outputs[index] = rounded
