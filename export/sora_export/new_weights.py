"""Writes quantised weights into a new safetensors file that all graphs of a component point into."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from sora_export.external_data import StoredTensor, read_safetensors_header
from sora_export.linears import Linear
from sora_export.safetensors_file import Entry, write_safetensors


@dataclass(frozen=True)
class Recipe:
    """How one linear's weight becomes new tensors.

    `layout` gives (suffix, safetensors dtype, bytes of an element, shape) of each; `make` gives the
    arrays in that order. Changing what a recipe does means changing its `name`.
    """

    name: str
    layout: Callable[[Linear], Sequence[tuple[str, str, int, list[int]]]]
    make: Callable[[Linear], Iterable[NDArray[Any]]]


def new_weights(file: Path, linears: Sequence[Linear], recipe: Recipe) -> dict[str, StoredTensor]:
    """The tensors `<weight>.<suffix>`, from where they lie already or from a new file.

    What an earlier graph wrote is never touched, as that graph points into it: weights that only this one
    has (the second chunk of a decoder, pictures in a transformer) go to `<file>.2.safetensors`, and so on.
    Weights are quantised one at a time; a file's name appears when it is complete.

    Raises:
        OutputError: The file cannot be written.
    """
    missing = {linear.name: linear for linear in linears}
    found: dict[str, StoredTensor] = {}
    number, place = 1, file
    while place.exists():
        made_of = _made_of(place)
        if made_of.get("recipe") == recipe.name:
            held = {name for name, linear in missing.items() if made_of.get(name) == _source(linear)}
            found |= _tensors(place, held, missing, recipe)
            missing = {name: linear for name, linear in missing.items() if name not in held}
        number += 1
        place = file.with_suffix(f".{number}{file.suffix}")
    if missing:
        _write(place, list(missing.values()), recipe)
        found |= _tensors(place, set(missing), missing, recipe)
    return found


def initializer(
    graph: ir.Graph, name: str, dtype: ir.DataType, stored: StoredTensor, shape: Sequence[int], root: Path
) -> ir.Value:
    """An initialiser of `graph` that points at a stored tensor; made once for each name."""
    if name in graph.initializers:
        return graph.initializers[name]
    data = ir.ExternalTensor(
        location=stored.file.relative_to(root).as_posix(),
        offset=stored.offset,
        length=stored.length,
        dtype=dtype,
        shape=ir.Shape(shape),
        name=name,
        base_dir=root,
    )
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=data)
    graph.register_initializer(value)
    return value


def _source(linear: Linear) -> str:
    """Which bytes a quantised weight was made of: the file's size and time change when they do."""
    data = linear.weight.const_value
    assert isinstance(data, ir.ExternalTensor)
    place = Path(data.path).stat()
    return f"{data.location}@{data.offset}:{place.st_size}:{place.st_mtime_ns}"


def _made_of(file: Path) -> dict[str, str]:
    with file.open("rb") as stream:
        length = struct.unpack("<Q", stream.read(8))[0]
        metadata: dict[str, str] = json.loads(stream.read(length)).get("__metadata__", {})
    return metadata


def _tensors(file: Path, names: set[str], linears: Mapping[str, Linear], recipe: Recipe) -> dict[str, StoredTensor]:
    header = read_safetensors_header(file)
    keys = [f"{name}.{suffix}" for name in names for suffix, *_ in recipe.layout(linears[name])]
    return {key: header[key] for key in keys}


def _write(file: Path, linears: Sequence[Linear], recipe: Recipe) -> None:
    metadata = {"recipe": recipe.name} | {layer.name: _source(layer) for layer in linears}
    entries = [
        Entry(f"{linear.name}.{suffix}", dtype, size, shape)
        for linear in linears
        for suffix, dtype, size, shape in recipe.layout(linear)
    ]
    write_safetensors(file, metadata, entries, (array for linear in linears for array in recipe.make(linear)))
