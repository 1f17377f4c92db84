"""Finds tensors inside safetensors files and points ONNX initialisers at their bytes."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sora_runtime.errors import BundleError

_DTYPES = {
    "F64": ir.DataType.DOUBLE,
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
}
FLOAT_TYPES = tuple(_DTYPES)
"""Of safetensors, those that weights may be stored in."""
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor's bytes lie: `file[offset:offset + length]`, little-endian, row-major."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


def mapped(tensor: ir.ExternalTensor) -> NDArray[Any]:
    """The values of external data as a read-only view of its mapped file, in the stored dtype.

    onnx_ir's own reading refuses files with several hard links, which a bundle's weights are.
    """
    assert tensor.offset is not None
    dtype = tensor.dtype.numpy()
    shape = tuple(int(size) for size in tensor.shape.numpy())
    return np.memmap(tensor.path, dtype, "r", tensor.offset, shape)


def read_safetensors_header(file: Path) -> dict[str, StoredTensor]:
    """Lists the tensors of a safetensors file; reads its header only.

    Layout: 8 bytes little-endian header length, JSON header, data
    (https://github.com/huggingface/safetensors#format).

    Raises:
        BundleError: The file is not a safetensors file or a tensor lies outside of it.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        header_length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if header_length > min(size - 8, _MAX_HEADER_BYTES):
            raise BundleError(f"{file} is not a safetensors file or is cut short; download it again")
        try:
            header = json.loads(stream.read(header_length))
        except ValueError as error:
            raise BundleError(f"{file} has a damaged header; download it again") from error
    try:
        return {
            name: _stored_tensor(file, entry, 8 + header_length)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{file} has a damaged header; download it again") from error


def _stored_tensor(file: Path, entry: Mapping[str, Any], start: int) -> StoredTensor:
    first, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    bits = _BITS.get(entry["dtype"])
    if not 0 <= first <= end or (bits and (end - first) * 8 != bits * math.prod(shape)):
        raise ValueError(entry)
    if start + end > file.stat().st_size:
        raise BundleError(f"{file} is cut short; download it again")
    return StoredTensor(file, entry["dtype"], shape, start + first, end - first)


def read_weights(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Lists the tensors of all shards of a component; of two with one name the later."""
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors.update(read_safetensors_header(file))
    return tensors


def attach_weights(
    model: ir.Model,
    parameters: Mapping[str, Sequence[str]],
    weights: Mapping[str, StoredTensor],
    root: Path,
) -> None:
    """Makes each parameter of `model` external data that points into the checkpoint.

    The location is written relative to `root`, the folder the graph will lie in. A tensor stored in
    half precision keeps its stored type and is followed by a `Cast` to the type the graph works in,
    so that no weight is ever converted on disk.

    Args:
        model: The graph; its initialisers named in `parameters` have no data yet.
        parameters: For each initialiser the names its tensor may have in the checkpoint.
        weights: The tensors of the checkpoint.
        root: The bundle's folder; every file of `weights` lies under it.

    Raises:
        BundleError: A tensor is missing, has another shape, or has a type without a cast.
    """
    for name, checkpoint_names in parameters.items():
        value = model.graph.initializers[name]
        key = next((k for k in checkpoint_names if k in weights), None)
        if key is None:
            folder = next(iter(weights.values())).file.parent
            raise BundleError(
                f"{folder} has no tensor {checkpoint_names[0]}; its config.json and its weights do not belong together"
            )
        _point_at(model.graph, value, key, weights[key], root)


def _point_at(graph: ir.Graph, value: ir.Value, key: str, stored: StoredTensor, root: Path) -> None:
    assert value.shape is not None and value.dtype is not None and value.name is not None
    wanted = tuple(int(size) for size in value.shape.numpy())
    if stored.shape != wanted:
        raise BundleError(
            f"tensor {key} in {stored.file} has shape {list(stored.shape)}, but config.json makes it "
            f"{list(wanted)}; its config.json and its weights do not belong together"
        )
    if stored.dtype not in _DTYPES:
        raise BundleError(
            f"tensor {key} in {stored.file} is stored as {stored.dtype}; only "
            f"{', '.join(_DTYPES)} can be built, so give the checkpoint before quantisation"
        )
    dtype, name = _DTYPES[stored.dtype], value.name
    if dtype != value.dtype:
        value = _cast_after_load(graph, value, dtype)
    value.const_value = ir.ExternalTensor(
        location=stored.file.relative_to(root).as_posix(),
        offset=stored.offset,
        length=stored.length,
        dtype=dtype,
        shape=ir.Shape(stored.shape),
        name=name,
        base_dir=root,
    )


def _cast_after_load(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Puts an initialiser of the stored type and a `Cast` in the place of `value`."""
    assert value.name is not None and value.dtype is not None
    name = value.name
    stored = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
    cast = ir.node("Cast", [stored], {"to": value.dtype}, name=f"{name}.cast")
    cast.outputs[0].name = f"{name}.float"
    cast.outputs[0].shape, cast.outputs[0].type = value.shape, value.type
    ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    del graph.initializers[name]
    graph.initializers[name] = stored
    graph.insert_before(graph[0], cast)
    return stored
