"""Static int8 convolutions for ONNX Runtime on a CPU: a video decoder's, where they are most of the time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sora_export.external_data import StoredTensor
from sora_export.graph_edit import GraphEditor, dims_of
from sora_export.half_precision import stored_weight
from sora_export.linears import Linear
from sora_export.new_weights import Recipe, initializer, new_weights
from sora_export.quantize_cpu import LARGEST, discard_unused

_EDGE = re.compile(r"(^|\.)(conv_in|conv_out|\w*embed\w*|proj\w*)\.")
_MIN_CHANNELS = 16


@dataclass(frozen=True)
class Convolution(Linear):
    """A `Conv(x, W)`, its weight [out, in, ...] seen as a matrix [out, in x ...]."""

    dims: tuple[int, ...]

    @property
    def key(self) -> str:
        """The name of its ranges: -min and max of the input, then of the output."""
        return f"{self.name}.range"


def quantisable_convolutions(graph: ir.Graph) -> list[Convolution]:
    """Those with a window and many channels; the first and the last of a network decide its range."""
    found = []
    for node in graph:
        if node.op_type != "Conv" or node.inputs[0] is None or node.inputs[1] is None:
            continue
        weight = stored_weight(node.inputs[1])
        dims = dims_of(weight)
        if not weight.is_initializer() or dims is None or weight.name is None or _EDGE.search(weight.name):
            continue
        window = int(np.prod(dims[2:]))
        if window > 1 and min(dims[:2]) >= _MIN_CHANNELS:
            found.append(Convolution(node, node.inputs[0], weight, dims[0], dims[1] * window, dims))
    return found


def quantise_convolutions(
    model: ir.Model, ranges: Mapping[str, NDArray[np.float32]], root: Path, data_file: str
) -> None:
    """Puts Q/DQ around the input and the output of every convolution whose ranges are known.

    ONNX Runtime makes one integer convolution of the five nodes: 2.2 to 3.2 times as fast as in float32
    for windows of 3x3x3 over 48 to 192 channels (AVX-512 with VNNI); `ConvInteger`, which would need
    no calibration, is 4 to 14 times slower than float32.

    Args:
        model: A float32 graph, rewritten in place.
        ranges: By `Convolution.key`: float32 [4].
        root: The bundle's folder.
        data_file: Where the int8 weights go, relative to `root`; used as it is if it holds them.

    Raises:
        OutputError: The file cannot be written.
    """
    convolutions = [found for found in quantisable_convolutions(model.graph) if found.key in ranges]
    if not convolutions:
        return
    tensors = new_weights(root / data_file, convolutions, INT8_CONVOLUTION)
    for convolution in convolutions:
        _quantise(GraphEditor(model.graph), convolution, ranges[convolution.key], tensors, root)
    model.graph.sort()


def _quantise(
    editor: GraphEditor,
    convolution: Convolution,
    ranges: NDArray[np.float32],
    tensors: Mapping[str, StoredTensor],
    root: Path,
) -> None:
    node, name, floats = convolution.node, convolution.name, convolution.node.inputs[1]
    weight, scale = (
        initializer(editor.graph, key, dtype, tensors[key], shape, root)
        for key, dtype, shape in (
            (f"{name}.int8", ir.DataType.INT8, convolution.dims),
            (f"{name}.scale", ir.DataType.FLOAT, (convolution.out_features,)),
        )
    )
    wide = editor.node(node, "DequantizeLinear", [weight, scale], convolution.dims, {"axis": 0})
    wide.type = ir.TensorType(ir.DataType.FLOAT)
    node.replace_input_with(0, _pair(editor, node, convolution.x, ranges[:2], f"{name}.input"))
    node.replace_input_with(1, wide)
    output = node.outputs[0]
    users = list(output.uses())
    rounded = _pair(editor, node, output, ranges[2:], f"{name}.output")
    for use in users:
        use.node.replace_input_with(use.idx, rounded)
    discard_unused(editor.graph, floats, convolution.weight)


def _pair(editor: GraphEditor, before: ir.Node, value: ir.Value, ends: NDArray[np.float32], name: str) -> ir.Value:
    low, high = max(float(ends[0]), 0.0), max(float(ends[1]), 0.0)
    step = np.float32((low + high) / 255 or 1.0)
    zero = np.uint8(np.clip(np.rint(low / step), 0, 255))
    constants = [_constant(editor.graph, f"{name}.scale", step), _constant(editor.graph, f"{name}.zero", zero)]
    dims = dims_of(value) or ()
    quantised = editor.node(before, "QuantizeLinear", [value, *constants], dims)
    quantised.type = ir.TensorType(ir.DataType.UINT8)
    rounded = editor.node(before, "DequantizeLinear", [quantised, *constants], dims)
    rounded.type = ir.TensorType(ir.DataType.FLOAT)
    return rounded


def _constant(graph: ir.Graph, name: str, number: Any) -> ir.Value:
    tensor = ir.tensor(np.array(number), name=name)
    value = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _layout(linear: Linear) -> list[tuple[str, str, int, list[int]]]:
    assert isinstance(linear, Convolution)
    return [("scale", "F32", 4, [linear.out_features]), ("int8", "I8", 1, list(linear.dims))]


def _quantised(linear: Linear) -> Iterator[NDArray[Any]]:
    scales = np.empty(linear.out_features, np.float32)
    weights = np.empty((linear.out_features, linear.in_features), np.int8)
    for part, rows in linear.weight_rows():
        largest = np.abs(rows).max(axis=1)
        scales[part] = np.where(largest > 0, largest / LARGEST, 1.0)
        weights[part] = np.rint(rows / scales[part, None])
    yield scales
    yield weights


INT8_CONVOLUTION = Recipe("int8, 7 bits, symmetric, a scale for each output channel; as stored", _layout, _quantised)
