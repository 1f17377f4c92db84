"""Small ONNX graphs for engine builders: blocks of linear layers and one attention each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TOKENS = 48


class _Blocks:
    def __init__(self, dtype: Any, quantised: Any) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.dtype, self.quantised = dtype, quantised

    def node(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def constant(self, name: str, values: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def linear(self, x: str, name: str, inputs: int, outputs: int) -> str:
        values = self.rng.standard_normal((outputs, inputs)) * 0.05
        bias = self.constant(f"{name}.bias", np.zeros(outputs, self.dtype))
        if self.quantised is None:
            return self.node(
                "Gemm", [x, self.constant(name, values.astype(self.dtype)), bias], f"{name}.gemm", transB=1
            )
        largest = 127.0 if self.quantised is np.int8 else 448.0
        scale = np.abs(values).max(1) / largest
        rounded = values / scale[:, None]
        stored = (np.rint(rounded) if self.quantised is np.int8 else rounded).astype(self.quantised)
        step = self.constant(f"{name}.x_scale", np.array(0.05, self.dtype))
        zero = self.constant(f"{name}.x_zero", np.zeros((), self.quantised))
        x = self.node(
            "DequantizeLinear", [self.node("QuantizeLinear", [x, step, zero], f"{name}.q"), step, zero], f"{name}.dq"
        )
        zeros = self.constant(f"{name}.zero", np.zeros(outputs, self.quantised))
        steps = self.constant(f"{name}.scale", scale.astype(self.dtype))
        weight = self.node("DequantizeLinear", [self.constant(name, stored), steps, zeros], f"{name}.wdq", axis=0)
        return self.node("Gemm", [x, weight, bias], f"{name}.gemm", transB=1)

    def attention(self, x: str, name: str, width: int, heads: int) -> str:
        parts = []
        for part in ("to_q", "to_k", "to_v"):
            split = self.node(
                "Reshape", [self.linear(x, f"{name}.{part}", width, width), "split"], f"{name}.{part}.split"
            )
            parts.append(self.node("Transpose", [split], f"{name}.{part}.heads", perm=[0, 2, 1, 3]))
        attended = self.node("Attention", parts, f"{name}.attention")
        joined = self.node("Transpose", [attended], f"{name}.join", perm=[0, 2, 1, 3])
        flat = self.node("Reshape", [joined, "flat"], f"{name}.flat")
        return self.node("Add", [x, self.linear(flat, f"{name}.to_out", width, width)], f"{name}.add")


def save_blocks(
    path: Path, dtype: Any = np.float16, *, quantised: Any = None, layers: int = 2, width: int = 64, heads: int = 2
) -> Path:
    """x [TOKENS, width] -> y, through `layers` residual attentions; weights lie in a file beside the graph.

    `quantised` is np.int8 or ml_dtypes.float8_e4m3fn: every Gemm then stands between Q/DQ pairs.
    """
    blocks = _Blocks(dtype, quantised)
    blocks.constant("split", np.array([1, TOKENS, heads, width // heads]))
    blocks.constant("flat", np.array([TOKENS, width]))
    x = "x"
    for layer in range(layers):
        x = blocks.attention(x, f"blocks.{layer}", width, heads)
    blocks.nodes.append(helper.make_node("Identity", [x], ["y"], name="last"))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    edge = [helper.make_tensor_value_info(name, kind, [TOKENS, width]) for name in "xy"]
    return _save(path, blocks.nodes, edge[:1], edge[1:], blocks.weights)


def save_attention(path: Path, dtype: Any = np.float32, shape: tuple[int, ...] = (1, 2, 64, 64)) -> Path:
    """One bare Attention of q, k, v [batch, heads, tokens, channels]."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [helper.make_tensor_value_info(name, kind, list(shape)) for name in "qkv"]
    node = helper.make_node("Attention", list("qkv"), ["y"], name="the_attention")
    return _save(path, [node], inputs, [helper.make_tensor_value_info("y", kind, list(shape))], [])


def save_node(path: Path, operator: str, shape: list[Any], **attributes: Any) -> Path:
    """One node of x float16."""
    edge = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name in "xy"]
    node = helper.make_node(operator, ["x"], ["y"], name="the_node", **attributes)
    return _save(path, [node], edge[:1], edge[1:], [])


def _save(path: Path, nodes: Any, inputs: Any, outputs: Any, weights: Any) -> Path:
    graph = helper.make_graph(nodes, "main", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("made.up", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    location = f"{path.name}.data"
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=512)
    return path


BFLOAT16 = ml_dtypes.bfloat16
FLOAT8 = ml_dtypes.float8_e4m3fn
