"""Turns a float32 graph into one that computes in float16 or bfloat16, for strongly typed engines.

NVIDIA ModelOpt's AutoCast (0.47) was tried first and does two things a bundle cannot take: it writes
converted copies of all weights into the graph file (the pocket model's graph grew from 0.2 to 8 MB; a
14B model would need its weights in memory), and with its defaults it put the time embedding's
sines of up to 1000 radians into half precision. This pass never reads a weight.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from sora_export.precision import MAX_FP16_KEYS

KEEP_FP32 = re.compile(r"(time_embedder|timestep_embedder|guidance_embedder|time_embedding)\.")
"""Weights that diffusers keeps in float32 (`_keep_in_fp32_modules`) or that make a time embedding."""

HALF_EDGES = re.compile(r"cache_(in|out)\.")
"""Inputs and outputs that take the half type: a VAE's caches, which in float32 are 5 GB at 480p."""

FLOAT, FLOAT16, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
_HALVES = (FLOAT16, BFLOAT16)
_FLOATS = (FLOAT, *_HALVES)

# Matrix products: what the half format is for.
_HEAVY = {"Gemm", "MatMul", "Conv", "ConvTranspose", "Attention"}
# Sums over many elements and functions whose result depends on the last bits of their argument.
_SENSITIVE = {"Sin", "Cos", "Exp", "Log", "Sqrt", "Reciprocal", "Pow", "Softmax", "CumSum"}
# Operators some of whose float inputs are parameters that must stay float32.
_PARAMETERS = {"Resize": (1, 2), "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2)}
_MAX_EMBEDDING_ROWS = 16
_MAX_FUSED_CHANNELS = 256  # of a head; measured with TensorRT-RTX 1.7.1 for SM80, SM89 and SM120


def to_half(model: ir.Model, dtype: ir.DataType) -> ir.Model:
    """Rewrites `model` in place; inputs and outputs but a VAE's caches stay float32, with a Cast at the edge.

    * Matrix products, convolutions and attention compute in `dtype`; attention over more than
      `MAX_FP16_KEYS` keys in bfloat16.
    * Sines, exponentials and reductions, divisions by a computed value, and the linears of a time
      embedding compute in float32. LayerNormalization and RMSNormalization take `dtype` and sum in
      float32 (their stash_type), as torch does.
    * Every other operator computes in the type of its largest operand: a stream of tokens stays
      half when a small float32 modulation is added to it.
    * A weight stored in `dtype` is used as it lies in the checkpoint, another is followed by one
      Cast. A value is cast at most once to each type.

    Returns:
        The same model.
    """
    assert dtype in _HALVES, dtype
    _HalfPass(model.graph, dtype).run()
    for transform in (passes.RemoveUnusedNodesPass(), passes.NameFixPass()):
        transform(model)
    return model


@dataclass
class _HalfPass:
    """The state of one rewrite: which casts exist already."""

    graph: ir.Graph
    dtype: ir.DataType
    casts: dict[tuple[int, ir.DataType], ir.Value] = field(default_factory=dict)
    constants: set[int] = field(default_factory=set)

    def run(self) -> None:
        for value in self.graph.inputs:
            if value.dtype == FLOAT and HALF_EDGES.match(value.name or ""):
                value.type = ir.TensorType(self.dtype)
        for node in list(self.graph):
            if is_stored_cast(node):
                continue
            self._rewrite(node)
        for index, output in enumerate(list(self.graph.outputs)):
            wanted = self.dtype if HALF_EDGES.match(output.name or "") else FLOAT
            if output.dtype in _FLOATS and output.dtype != wanted:
                self._cast_output(index, output, wanted)

    def _rewrite(self, node: ir.Node) -> None:
        operands = {
            index: value
            for index, value in enumerate(node.inputs)
            if value is not None and value.dtype in _FLOATS and index not in _PARAMETERS.get(node.op_type, ())
        }
        if node.op_type in ("Cast", "ConstantOfShape", "Constant") or not operands:
            _set_output_types(node, None)
            return
        if all(self._is_constant(value) for value in node.inputs if value is not None):
            self.constants.update(id(output) for output in node.outputs)
            _set_output_types(node, FLOAT)  # rope tables: folded once, then cast
            return
        wanted = self._compute_type(node, operands)
        for index, value in operands.items():
            if value.dtype != wanted or stored_weight(value) is not value:
                node.replace_input_with(index, self._cast(value, wanted, node))
        _set_output_types(node, wanted)

    def _compute_type(self, node: ir.Node, operands: dict[int, ir.Value]) -> ir.DataType:
        if node.op_type in _HEAVY:
            if node.op_type == "Attention" and _needs_bfloat16(node):
                return BFLOAT16
            return FLOAT if self._is_time_embedding(node, operands) else self.dtype
        computed_divisor = node.op_type == "Div" and 1 in operands and not self._is_constant(operands[1])
        if node.op_type in _SENSITIVE or node.op_type.startswith("Reduce") or computed_divisor:
            return FLOAT
        return self._stream_type(node, operands)

    def _stream_type(self, node: ir.Node, operands: dict[int, ir.Value]) -> ir.DataType:
        """The type of the largest operand that is no constant; half if there are two."""
        streams = [value for value in operands.values() if not self._is_constant(value)]
        if "Normalization" in node.op_type:
            streams = [operands[0]]
        if node.op_type == "Concat" and any(value.dtype != FLOAT for value in streams):
            return self.dtype
        size = max((_size(value) for value in streams), default=0)
        types = {value.dtype for value in streams if _size(value) == size}
        return FLOAT if types == {FLOAT} else self.dtype

    def _is_constant(self, value: ir.Value) -> bool:
        return stored_weight(value).is_initializer() or id(value) in self.constants

    def _is_time_embedding(self, node: ir.Node, operands: dict[int, ir.Value]) -> bool:
        """Whether a Gemm over few rows belongs to a time embedding; it costs nothing in float32."""
        rows = operands[0].shape
        few = rows is not None and int(rows.numpy()[0]) <= _MAX_EMBEDDING_ROWS
        names = [stored_weight(value).name or "" for value in operands.values() if self._is_constant(value)]
        return node.op_type == "Gemm" and few and any(KEEP_FP32.search(name) for name in names)

    def _cast(self, value: ir.Value, wanted: ir.DataType, user: ir.Node) -> ir.Value:
        """`value` in type `wanted`, made once: a constant anew, a weight from where it is stored."""
        root = stored_weight(value)
        if root.dtype == wanted:
            return root
        key = (id(root), wanted)
        if key not in self.casts:
            small = root.is_initializer() and not isinstance(root.const_value, ir.ExternalTensor)
            self.casts[key] = self._constant(root, wanted) if small else self._cast_node(root, wanted, user)
        return self.casts[key]

    def _cast_node(self, value: ir.Value, wanted: ir.DataType, user: ir.Node) -> ir.Value:
        cast = ir.node("Cast", [value], {"to": wanted}, name=f"{value.name}.{_suffix(wanted)}.cast")
        output = cast.outputs[0]
        output.name, output.shape, output.type = f"{value.name}.{_suffix(wanted)}", value.shape, ir.TensorType(wanted)
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, cast)
        else:
            self.graph.insert_before(self.graph[0], cast)
        return output

    def _constant(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        assert value.const_value is not None
        limit = 65504.0 if wanted == FLOAT16 else 3.3895314e38
        array = np.clip(value.const_value.numpy().astype(np.float32), -limit, limit).astype(wanted.numpy())
        name = f"{value.name}.{_suffix(wanted)}"
        made = ir.Value(
            name=name, shape=value.shape, type=ir.TensorType(wanted), const_value=ir.tensor(array, name=name)
        )
        self.graph.register_initializer(made)
        return made

    def _cast_output(self, index: int, output: ir.Value, wanted: ir.DataType) -> None:
        name, shape = output.name, output.shape
        assert output.dtype is not None
        output.name = f"{name}.{_suffix(output.dtype)}"
        cast = ir.node("Cast", [output], {"to": wanted}, name=f"{name}.cast")
        cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].type = name, shape, ir.TensorType(wanted)
        self.graph.append(cast)
        self.graph.outputs[index] = cast.outputs[0]


def _suffix(dtype: ir.DataType) -> str:
    return {FLOAT: "fp32", FLOAT16: "fp16", BFLOAT16: "bf16"}[dtype]


def is_stored_cast(node: ir.Node) -> bool:
    """Whether `node` is the Cast that follows a weight stored in another type than float32."""
    return node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].is_initializer()


def stored_weight(value: ir.Value) -> ir.Value:
    """A weight as it is stored, for its cast; any other value itself."""
    producer = value.producer()
    if producer is not None and is_stored_cast(producer):
        stored = producer.inputs[0]
        assert stored is not None
        return stored
    return value


def _needs_bfloat16(attention: ir.Node) -> bool:
    """Whether float16 would overflow, or TensorRT has no float16 kernel: one head, or more than 256 channels of one."""
    query, key = (attention.inputs[index] for index in (0, 1))
    if query is None or key is None or query.shape is None or key.shape is None:
        return False
    dims = [int(size) for size in query.shape.numpy()]
    heads = dims[1] if len(dims) == 4 else attention.attributes["q_num_heads"].as_int()
    channels = dims[-1] if len(dims) == 4 else dims[-1] // heads
    return int(key.shape.numpy()[-2]) > MAX_FP16_KEYS or dims[0] * heads == 1 or channels > _MAX_FUSED_CHANNELS


def _size(value: ir.Value) -> int:
    if value.shape is None or not value.shape.is_static():
        return 1 << 62
    return int(np.prod(value.shape.numpy(), dtype=np.int64))


def _set_output_types(node: ir.Node, wanted: ir.DataType | None) -> None:
    for index, output in enumerate(node.outputs):
        statistics = "Normalization" in node.op_type and index > 0
        if wanted is not None and not statistics and (output.dtype in _FLOATS or output.dtype is None):
            output.type = ir.TensorType(wanted)
