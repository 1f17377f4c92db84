"""NVFP4 in plain operators: ONNX Runtime has no 4-bit floats on the CPU."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sora_export.graph_edit import GraphEditor, dims_of
from sora_export.quantize_nvfp4 import BLOCK, DYNAMIC_QUANTIZE

_FLOAT, _FP4, _FP8 = ir.DataType.FLOAT, ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN
_LARGEST = 6.0


def emulate_fp4(graph: ir.Graph) -> None:
    """Replaces every 4-bit tensor by the float32 numbers that it stands for."""
    editor = GraphEditor(graph)
    for node in list(graph):
        if node.op_type == DYNAMIC_QUANTIZE:
            _emulate_input(editor, node)
    for value in list(graph.initializers.values()):
        if value.dtype == _FP4:
            _emulate_weight(editor, value)


def _emulate_input(editor: GraphEditor, node: ir.Node) -> None:
    """X -> blocks / 6 in FP8 -> numbers of 4 bits in their units, still float32."""
    x, unit = node.inputs
    numbers, scales = node.outputs
    rows, columns = dims_of(x) or (0, 0)
    blocks, ones = (rows, columns // BLOCK, BLOCK), (rows, columns // BLOCK, 1)
    wide = editor.node(node, "Cast", [x], (rows, columns), {"to": _FLOAT})
    wide.type = ir.TensorType(_FLOAT)
    parts = editor.node(node, "Reshape", [wide, editor.ints(blocks)], blocks)
    magnitude = editor.node(node, "Abs", [parts], blocks)
    largest = editor.node(node, "ReduceMax", [magnitude, editor.ints([2])], ones, {"keepdims": 1})
    sixth = editor.node(node, "Div", [largest, _number(editor, _LARGEST)], ones)
    exact = editor.node(node, "Div", [sixth, unit], ones)
    coded = editor.node(node, "Cast", [exact], ones, {"to": _FP8})
    coded.type = ir.TensorType(_FP8)
    stored = editor.node(node, "Reshape", [coded, editor.ints(ones[:2])], ones[:2])
    steps = editor.node(node, "DequantizeLinear", [coded, unit], ones)
    steps.type = ir.TensorType(_FLOAT)
    safe = editor.node(node, "Max", [steps, _number(editor, 1e-30)], ones)
    rounded = _round_to_e2m1(editor, node, editor.node(node, "Div", [parts, safe], blocks))
    scales.replace_all_uses_with(stored)
    for dequantise in numbers.consumers():  # numbers x steps
        product = editor.node(dequantise, "Mul", [rounded, steps], blocks)
        editor.replace(dequantise.outputs[0], editor.reshape(dequantise, product, (rows, columns)))


def _round_to_e2m1(editor: GraphEditor, before: ir.Node, numbers: ir.Value) -> ir.Value:
    """The nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6: steps of 0.5 below 2, of 1 below 4, then of 2; ties to even."""
    dims = dims_of(numbers) or ()
    low, high = _number(editor, -_LARGEST), _number(editor, _LARGEST)
    inside = editor.node(before, "Clip", [numbers, low, high], dims)
    magnitude = editor.node(before, "Abs", [inside], dims)
    step = _number(editor, 2.0)
    for limit, finer in ((4.0, 1.0), (2.0, 0.5)):
        below = editor.node(before, "Less", [magnitude, _number(editor, limit)], dims)
        below.type = ir.TensorType(ir.DataType.BOOL)
        step = editor.node(before, "Where", [below, _number(editor, finer), step], dims)
        step.type = ir.TensorType(_FLOAT)
    counted = editor.node(before, "Div", [inside, step], dims)
    return editor.node(before, "Mul", [editor.node(before, "Round", [counted], dims), step], dims)


def _emulate_weight(editor: GraphEditor, value: ir.Value) -> None:
    assert value.const_value is not None and value.name is not None
    (dequantise,) = value.consumers()
    rows, columns = dims_of(value) or (0, 0)
    blocks = (rows, columns // BLOCK, BLOCK)
    array = value.const_value.numpy().astype(np.float32).reshape(blocks)
    name = f"{value.name}.wide"
    shape, kind = ir.Shape(blocks), ir.TensorType(_FLOAT)
    wide = ir.Value(name=name, shape=shape, type=kind, const_value=ir.tensor(array, name=name))
    editor.graph.register_initializer(wide)
    steps = dequantise.inputs[1]
    assert steps is not None
    column = editor.node(dequantise, "Reshape", [steps, editor.ints((*blocks[:2], 1))], (*blocks[:2], 1))
    product = editor.node(dequantise, "Mul", [wide, column], blocks)
    editor.replace(dequantise.outputs[0], editor.reshape(dequantise, product, (rows, columns)))
    del editor.graph.initializers[value.name]


def _number(editor: GraphEditor, number: float) -> ir.Value:
    name = f"number.{number:g}"
    if name not in editor.graph.initializers:
        tensor = ir.tensor(np.array(number, np.float32), name=name)
        value = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(_FLOAT), const_value=tensor)
        editor.graph.register_initializer(value)
    return editor.graph.initializers[name]
