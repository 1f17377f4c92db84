"""Writes a safetensors file tensor by tensor, so that it may be larger than the memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sora_runtime.output import explain_os_errors, partial_file


class Entry(NamedTuple):
    """A tensor that is to come: its name, safetensors dtype, bytes of an element and shape."""

    name: str
    dtype: str
    size: int
    shape: Sequence[int]


def write_safetensors(
    file: Path, metadata: Mapping[str, str], entries: Sequence[Entry], arrays: Iterable[NDArray[Any]]
) -> None:
    """Writes the arrays, in the order of the entries; the file has its name when it is complete.

    Raises:
        OutputError: It cannot be written; nothing is left.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for entry in entries:
        start, end = end, end + entry.size * math.prod(entry.shape)
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64)
    with explain_os_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with partial_file(file) as partial, explain_os_errors(file), partial.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for array in arrays:
            stream.write(np.ascontiguousarray(array).view(np.uint8).data)
