"""Turns a graph's weights into inputs, so that an engine holds none and all engines share those of the checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import onnx

_QUANTISERS = {"QuantizeLinear", "DequantizeLinear"}


@dataclass(frozen=True)
class SharedWeight:
    """A weight that whoever runs the engine binds as an input: `file[offset:offset + length]`, row-major."""

    name: str
    dtype: str
    """ONNX's name: FLOAT16, BFLOAT16, FLOAT8E4M3FN ..."""
    shape: tuple[int, ...]
    file: str
    """Relative to the graph's folder."""
    offset: int
    length: int


def weights_as_inputs(graph: Path) -> tuple[bytes, list[SharedWeight]]:
    """The graph with every initialiser that lies in another file made an input, and where each one lies.

    Scales and zero points stay: engines want them as constants. So do initialisers inside the .onnx file, which
    are small.

    Returns:
        The serialised model, without the weights; and one record for each new input.
    """
    model = onnx.load(graph, load_external_data=False)
    constants = {
        name for node in model.graph.node if node.op_type in _QUANTISERS for name in node.input[1:]
    }  # fmt: skip
    shared = []
    for tensor in list(model.graph.initializer):
        if not tensor.external_data or tensor.name in constants:
            continue
        entry = {item.key: item.value for item in tensor.external_data}
        dtype = onnx.TensorProto.DataType.Name(tensor.data_type)
        length = int(entry["length"]) if "length" in entry else _bytes_of(tensor)
        place = (entry["location"], int(entry.get("offset", 0)), length)
        shared.append(SharedWeight(tensor.name, dtype, tuple(tensor.dims), *place))
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        model.graph.initializer.remove(tensor)
    return model.SerializeToString(), shared


def _bytes_of(tensor: onnx.TensorProto) -> int:
    """As its type and dimensions say, where its entry does not; of types of a whole number of bytes."""
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(itemsize * math.prod(tensor.dims))
