"""NVFP4 linears for TensorRT: 4-bit numbers with an FP8 scale for each 16 of them, weights as new data.

Each block of 16 along the inputs has the scale (its magnitude / 6) as FP8, in units of one float32 number a tensor
(https://developer.nvidia.com/blog/introducing-nvfp4-for-efficient-and-accurate-low-precision-inference). TensorRT
quantises activations as they come, by its own operator; the unit comes from calibration.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sora_export.external_data import StoredTensor
from sora_export.graph_edit import GraphEditor
from sora_export.linears import Linear
from sora_export.new_weights import Recipe, initializer, new_weights
from sora_export.quantize_cpu import discard_unused

BLOCK = 16
DYNAMIC_QUANTIZE = "TRT_FP4DynamicQuantize"
_LARGEST, _LARGEST_SCALE = 6.0, 448.0
_FLOAT, _FP4, _FP8 = ir.DataType.FLOAT, ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN
_IR_VERSION = 11  # the first with FLOAT4E2M1


def fits(linear: Linear) -> bool:
    """Whether the inputs divide into blocks, of which a kernel takes two at a time."""
    return linear.in_features % (2 * BLOCK) == 0 and linear.out_features % BLOCK == 0


def quantise_to_nvfp4(model: ir.Model, groups: list[tuple[list[Linear], float]], root: Path, data_file: str) -> None:
    """Rewrites linears of a half-precision graph in place.

    Args:
        model: The graph.
        groups: Linears that share an input, and that input's calibrated magnitude.
        root: The bundle's folder.
        data_file: Where the weights go, relative to `root`; used as it is if it holds them.

    Raises:
        OutputError: The file cannot be written.
    """
    if not groups:
        return
    model.ir_version = max(model.ir_version, _IR_VERSION)
    model.opset_imports["trt"] = 1
    tensors = new_weights(root / data_file, [linear for linears, _ in groups for linear in linears], NVFP4)
    editor = GraphEditor(model.graph)
    for linears, largest in groups:
        x = _quantised_input(editor, linears[0], largest)
        for linear in linears:
            floats = linear.node.inputs[1]
            linear.node.replace_input_with(0, x)
            linear.node.replace_input_with(1, _weight(editor, linear, tensors, root))
            discard_unused(model.graph, floats, linear.weight)


def _quantised_input(editor: GraphEditor, linear: Linear, largest: float) -> ir.Value:
    x, before = linear.x, linear.node
    assert x.shape is not None
    rows = int(x.shape.numpy()[0])
    dims, blocks = (rows, linear.in_features), (rows, linear.in_features // BLOCK)
    unit = _unit(editor.graph, f"{linear.name.removesuffix('.weight')}.input.scale", largest)
    attributes = {"axis": -1, "block_size": BLOCK, "scale_type": int(_FP8)}
    node = ir.node(DYNAMIC_QUANTIZE, [x, unit], attributes, domain="trt", num_outputs=2)
    editor.graph.insert_before(before, node)
    for output, dtype, shape in zip(node.outputs, (_FP4, _FP8), (dims, blocks), strict=True):
        output.type, output.shape = ir.TensorType(dtype), ir.Shape(shape)
    return _dequantised(editor, before, node.outputs[0], node.outputs[1], unit, x)


def _weight(editor: GraphEditor, linear: Linear, tensors: dict[str, StoredTensor], root: Path) -> ir.Value:
    n, k = linear.out_features, linear.in_features
    parts = [("nvfp4", _FP4, [n, k]), ("block_scale", _FP8, [n, k // BLOCK]), ("scale", _FLOAT, [])]
    numbers, scales, unit = (
        initializer(editor.graph, f"{linear.name}.{suffix}", dtype, tensors[f"{linear.name}.{suffix}"], shape, root)
        for suffix, dtype, shape in parts
    )
    like = linear.node.inputs[1]
    assert like is not None
    return _dequantised(editor, linear.node, numbers, scales, unit, like)


def _dequantised(
    editor: GraphEditor, before: ir.Node, numbers: ir.Value, scales: ir.Value, unit: ir.Value, like: ir.Value
) -> ir.Value:
    """(numbers x (scales x unit)), in the type of `like`."""
    assert numbers.shape is not None and scales.shape is not None
    dims, blocks = numbers.shape.numpy(), scales.shape.numpy()
    steps = editor.node(before, "DequantizeLinear", [scales, unit], blocks)
    steps.type = ir.TensorType(_FLOAT)
    attributes = {"axis": -1, "block_size": BLOCK}
    wide = editor.node(before, "DequantizeLinear", [numbers, steps], dims, attributes)
    wide.type = ir.TensorType(_FLOAT)
    half = editor.node(before, "Cast", [wide], dims, {"to": like.dtype})
    half.type = like.type
    return half


def _unit(graph: ir.Graph, name: str, largest: float) -> ir.Value:
    number = largest / (_LARGEST * _LARGEST_SCALE) if largest > 0 else 1.0
    tensor = ir.tensor(np.array(number, np.float32), name=name)
    value = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(_FLOAT), const_value=tensor)
    graph.register_initializer(value)
    return value


def _layout(linear: Linear) -> list[tuple[str, str, int, list[int]]]:
    n, k = linear.out_features, linear.in_features
    return [("scale", "F32", 4, []), ("block_scale", "F8_E4M3", 1, [n, k // BLOCK]), ("nvfp4", "U8", 1, [n, k // 2])]


def _quantised(linear: Linear) -> Iterator[NDArray[Any]]:
    largest = max(float(np.abs(rows).max()) for _, rows in linear.weight_rows())
    unit = np.float32(largest / (_LARGEST * _LARGEST_SCALE) if largest > 0 else 1.0)
    scales = np.empty((linear.out_features, linear.in_features // BLOCK), ml_dtypes.float8_e4m3fn)
    packed = np.empty((linear.out_features, linear.in_features // 2), np.uint8)
    for part, rows in linear.weight_rows():
        blocks = rows.reshape(len(rows), -1, BLOCK)
        scales[part] = (np.abs(blocks).max(axis=2) / (_LARGEST * unit)).astype(scales.dtype)
        steps = scales[part].astype(np.float32)[..., None] * unit
        numbers = np.divide(blocks, steps, out=np.zeros_like(blocks), where=steps > 0)
        bits = numbers.reshape(len(rows), -1).astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15
        packed[part] = bits[:, 0::2] | bits[:, 1::2] << 4
    yield unit.reshape(1)
    yield scales
    yield packed


NVFP4 = Recipe(
    "nvfp4, blocks of 16 along the inputs, FP8 scales, one unit a tensor; [out, in / 2]", _layout, _quantised
)
