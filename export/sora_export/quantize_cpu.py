"""Dynamic int8 linears for ONNX Runtime on a CPU, with the quantised weights in a new safetensors file."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sora_export.external_data import StoredTensor, read_safetensors_header
from sora_export.linears import Linear, quantisable_linears
from sora_runtime.output import explain_os_errors, partial_file

LARGEST = 63
"""Of a weight: 7 bits. AVX2 adds pairs of products of two bytes in 16 bits, which 8-bit weights overflow
(0.4% wrong sums, errors of up to 24,000 steps); with VNNI, which adds in 32, the eighth bit would halve an
error that is small beside the activations', and a bundle would answer differently from machine to machine."""

_RECIPE = "int8 symmetric, 7 bits, a scale for each output channel, [in_features, out_features]"
_INT8, _FLOAT = ir.DataType.INT8, ir.DataType.FLOAT
_BYTES = {"I8": 1, "F32": 4}


def quantize_for_cpu(model: ir.Model, *, root: Path, data_file: str, keep: frozenset[str] = frozenset()) -> None:
    """Rewrites `model` in place: `Gemm` of every quantisable linear becomes `DynamicQuantizeMatMul`.

    The operator measures the range of its input at every call, quantises it to unsigned 8 bits,
    multiplies in integers and adds the bias in float32, all in one pass over memory. What keeps its
    float32 weight still points into the checkpoint.

    Args:
        model: A float32 graph.
        root: The bundle's folder.
        data_file: Where the quantised weights go, relative to `root`. If it holds the weights of all
            these layers already (of another bucket), it is used as it is.
        keep: Names of weights that stay float32.

    Raises:
        OutputError: The file cannot be written.
    """
    linears = [linear for linear in quantisable_linears(model.graph) if linear.name not in keep]
    if not linears:
        return
    file = root / data_file
    layers = {linear.name: linear for linear in linears}
    tensors = _stored(file, list(layers.values()))
    if tensors is None:
        _write(file, list(layers.values()))
        tensors = read_safetensors_header(file)
    for linear in linears:
        _replace(model.graph, linear, tensors, root)
    model.opset_imports["com.microsoft"] = 1


def _replace(graph: ir.Graph, linear: Linear, tensors: dict[str, StoredTensor], root: Path) -> None:
    name = linear.name
    weight = _initializer(graph, f"{name}.int8", _INT8, tensors, root)
    scale = _initializer(graph, f"{name}.scale", _FLOAT, tensors, root)
    bias = linear.node.inputs[2] if len(linear.node.inputs) > 2 else None
    inputs = [linear.x, weight, scale, None, *([bias] if bias is not None else [])]
    node = ir.node("DynamicQuantizeMatMul", inputs, domain="com.microsoft", name=linear.node.name)
    old, new = linear.node.outputs[0], node.outputs[0]
    new.shape, new.type = old.shape, old.type
    floats = linear.node.inputs[1]
    ir.convenience.replace_nodes_and_values(graph, linear.node, [linear.node], [node], [old], [new])
    for value in (floats, linear.weight):
        if value is not None and not any(value.uses()):
            _discard(graph, value)


def _discard(graph: ir.Graph, value: ir.Value) -> None:
    producer = value.producer()
    if producer is not None:
        graph.remove(producer, safe=True)
    elif value.name is not None and value.name in graph.initializers:
        del graph.initializers[value.name]


def _initializer(
    graph: ir.Graph, name: str, dtype: ir.DataType, tensors: dict[str, StoredTensor], root: Path
) -> ir.Value:
    if name in graph.initializers:
        return graph.initializers[name]
    stored = tensors[name]
    data = ir.ExternalTensor(
        location=stored.file.relative_to(root).as_posix(),
        offset=stored.offset,
        length=stored.length,
        dtype=dtype,
        shape=ir.Shape(stored.shape),
        name=name,
        base_dir=root,
    )
    value = ir.Value(name=name, shape=ir.Shape(stored.shape), type=ir.TensorType(dtype), const_value=data)
    graph.register_initializer(value)
    return value


def _source(linear: Linear) -> str:
    """Which bytes a quantised weight was made of: the file's size and time change when they do."""
    data = linear.weight.const_value
    assert isinstance(data, ir.ExternalTensor)
    place = Path(data.path).stat()
    return f"{data.location}@{data.offset}:{place.st_size}:{place.st_mtime_ns}"


def _stored(file: Path, linears: Sequence[Linear]) -> dict[str, StoredTensor] | None:
    """The tensors of `file` if it was made of these weights by this recipe."""
    if not file.exists():
        return None
    with file.open("rb") as stream:
        length = struct.unpack("<Q", stream.read(8))[0]
        sources = json.loads(stream.read(length)).get("__metadata__", {})
    if sources.get("recipe") != _RECIPE or any(sources.get(linear.name) != _source(linear) for linear in linears):
        return None
    return read_safetensors_header(file)


def _write(file: Path, linears: Sequence[Linear]) -> None:
    """Quantises one weight at a time into a new file; its name appears when it is complete."""
    header: dict[str, Any] = {"__metadata__": {"recipe": _RECIPE} | {layer.name: _source(layer) for layer in linears}}
    end = 0
    for linear in linears:
        for suffix, dtype, shape in (
            ("scale", "F32", [linear.out_features]),
            ("int8", "I8", [linear.in_features, linear.out_features]),
        ):
            start, end = end, end + _BYTES[dtype] * int(np.prod(shape, dtype=np.int64))
            header[f"{linear.name}.{suffix}"] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64)
    with explain_os_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with partial_file(file) as partial, explain_os_errors(file), partial.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for linear in linears:
            for array in _quantised(linear):
                stream.write(np.ascontiguousarray(array).data)


def _quantised(linear: Linear) -> Iterator[NDArray[Any]]:
    """Scales [out_features] float32, then weights [in_features, out_features] int8."""
    scales = np.empty(linear.out_features, np.float32)
    weights = np.empty((linear.in_features, linear.out_features), np.int8)
    for part, rows in linear.weight_rows():
        largest = np.abs(rows).max(axis=1)
        scales[part] = np.where(largest > 0, largest / LARGEST, 1.0)
        weights[:, part] = np.rint(rows / scales[part, None]).T
    yield scales
    yield weights
