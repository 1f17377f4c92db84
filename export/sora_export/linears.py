"""Finds the linear layers of a graph that may be quantised."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sora_export.external_data import mapped
from sora_export.graph_edit import dims_of
from sora_export.half_precision import stored_weight

_IN_BLOCK = re.compile(r"(^|\.)\w*(blocks?|layers?)\.\d+\.")
_SENSITIVE = re.compile(r"(^|[._])(norm\w*|adaln\w*|modulation\w*|\w*embed\w*|\w*refiner\w*)\.")
_MIN_FEATURES = 16  # below, TensorRT has no quantised kernel (NVIDIA Model-Optimizer skips K or N < 16)
_CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Linear:
    """A `Gemm(x, W, transB=1)`: x [rows, in_features] times the transpose of W [out_features, in_features]."""

    node: ir.Node
    x: ir.Value
    weight: ir.Value
    """The initialiser, as it is stored."""
    out_features: int
    in_features: int

    @property
    def name(self) -> str:
        """The weight's name in the checkpoint."""
        assert self.weight.name is not None
        return self.weight.name.removeprefix("model.")

    def weight_rows(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """The weight in float32, some rows at a time, read from the checkpoint's mapped file."""
        data = self.weight.const_value
        assert data is not None
        stored: NDArray[Any] = mapped(data) if isinstance(data, ir.ExternalTensor) else data.numpy()
        step = max(_CHUNK_ELEMENTS // self.in_features, 1)
        for start in range(0, self.out_features, step):
            part = slice(start, min(start + step, self.out_features))
            yield part, stored[part].astype(np.float32).reshape(-1, self.in_features)


def quantisable_linears(graph: ir.Graph) -> list[Linear]:
    """The linears inside a network's blocks, in order.

    Left out, as they decide much and cost little: patch embedding, time and text projections, modulation, the
    final projection, everything that is computed once for all tokens, and fewer than 16 features.
    """
    found = []
    for node in graph:
        if node.op_type != "Gemm" or "transB" not in node.attributes:
            continue
        x, weight = node.inputs[0], node.inputs[1]
        if x is None or weight is None:
            continue
        stored = stored_weight(weight)
        dims = dims_of(stored)
        if not stored.is_initializer() or dims is None or stored.name is None:
            continue
        rows = dims_of(x) or dims_of(node.outputs[0])
        linear = Linear(node, x, stored, *dims)
        sensitive = _SENSITIVE.search(linear.name) or not _IN_BLOCK.search(linear.name)
        if not sensitive and (rows is None or rows[0] > 1) and min(dims) >= _MIN_FEATURES:
            found.append(linear)
    return found
