"""Gives a float32 graph the precision that was asked for: halves, and scales around linears for TensorRT.

NVIDIA ModelOpt (0.47) was tried for Q/DQ insertion and does not fit a bundle: it writes every weight
into the graph file (the pocket model's grew from 0.2 to 16 MB), quantises projections and attention
that are to stay in high precision, needs its own ONNX Runtime and an older onnx, and calibrates on
arrays that all lie in memory, where this takes whole trajectories one evaluation at a time. The
scheme is its own: maximum calibration, a scale for each output channel, SmoothQuant for INT8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sora_export.attentions import Attention, quantise_attention, self_attentions
from sora_export.calibration import CalibrationResult
from sora_export.convolutions import quantise_convolutions
from sora_export.half_precision import to_half
from sora_export.linears import Linear, quantisable_linears
from sora_export.mask_rows import mask_rows
from sora_export.precision import EngineName, Part, Precision, choose
from sora_export.processor_attention import blockwise_attention
from sora_export.quantize_cpu import quantize_for_cpu
from sora_export.quantize_nvfp4 import fits, quantise_to_nvfp4
from sora_runtime.errors import InvalidRequest

_FORMATS = {Precision.INT8: ir.DataType.INT8, Precision.FP8: ir.DataType.FLOAT8E4M3FN}
_LARGEST = {Precision.INT8: 127.0, Precision.FP8: 448.0}
SMOOTHING = 0.5
"""How much of a channel's range moves from the activation to the weight (SmoothQuant, arXiv:2211.10438, eq. 4)."""


def to_precision(
    model: ir.Model,
    precision: Precision,
    *,
    engine: EngineName,
    part: Part,
    calibration: CalibrationResult | None,
    root: Path,
    data_file: str,
) -> ir.Model:
    """Rewrites a float32 graph in place.

    For TensorRT no weight is converted or copied: what the checkpoint stores is cast and quantised by
    nodes that the builder folds; only scales are new, in the graph. NVFP4 weights and the int8 ones for
    ONNX Runtime are new data in `root / data_file`, shared by all buckets of a component.

    Args:
        model: A float32 graph whose weights are external data.
        precision: What was asked for; `sora_export.precision.choose` says what it means here.
        engine: The library that will run the graph.
        part: Which component it is of.
        calibration: Of this component; needed for quantised linears on TensorRT. A VAE decoder's
            convolutions become int8 for ONNX Runtime if there is one.
        root: The bundle's folder.
        data_file: The safetensors file for new weights, relative to `root`.

    Returns:
        The same model.

    Raises:
        InvalidRequest: The engine cannot have that precision, or calibration is missing.
        OutputError: `data_file` cannot be written.
    """
    choice = choose(precision, engine=engine, part=part)
    if engine == "onnxruntime":
        blockwise_attention(model)
        if choice.linears is Precision.INT8:
            keep = calibration.keep if calibration is not None else frozenset()
            quantize_for_cpu(model, root=root, data_file=data_file, keep=keep)
        if choice.convolutions is Precision.INT8 and calibration is not None:
            known = {name: ends for name, ends in calibration.amax.items() if name not in calibration.keep}
            quantise_convolutions(model, known, root, data_file)
        return model
    half = ir.DataType.BFLOAT16
    if choice.convolutions is Precision.FP16 or (choice.linears.quantised and _stored_as_float16(model.graph)):
        half = ir.DataType.FLOAT16
    mask_rows(model)
    to_half(model, half)
    if choice.linears.quantised:
        if calibration is None:
            raise InvalidRequest(
                f"precision {precision} for {engine} takes its scales from real clips; give prompts with --calibration"
            )
        quantiser = _Quantiser(model.graph, choice.linears, half, calibration)
        attentions = self_attentions(model.graph) if choice.attention is Precision.FP8 else []
        if choice.linears is Precision.NVFP4:
            quantise_to_nvfp4(model, quantiser.measured_groups(), root, data_file)
        else:
            quantiser.quantise_linears()
        quantiser.quantise_attentions(attentions)
    return model


def _stored_as_float16(graph: ir.Graph) -> bool:
    stored = {value.dtype for value in graph.initializers.values() if isinstance(value.const_value, ir.ExternalTensor)}
    return ir.DataType.FLOAT16 in stored


@dataclass
class _Quantiser:
    """Puts Q/DQ around the linears of a half-precision graph, and into its self-attention for FP8."""

    graph: ir.Graph
    precision: Precision
    half: ir.DataType
    calibration: CalibrationResult

    def quantise_linears(self) -> None:
        """Q/DQ around every linear that was calibrated."""
        for linears, _ in self.measured_groups():
            self._quantise(linears)

    def measured_groups(self) -> list[tuple[list[Linear], float]]:
        """Linears that share their input, and the largest magnitude of that input."""
        groups: dict[int, list[Linear]] = {}
        for linear in quantisable_linears(self.graph):
            known = linear.name in self.calibration.amax and linear.name not in self.calibration.keep
            if known and (self.precision is not Precision.NVFP4 or fits(linear)):
                groups.setdefault(id(linear.x), []).append(linear)
        amax = self.calibration.amax
        return [(group, max(float(amax[linear.name].max()) for linear in group)) for group in groups.values()]

    def quantise_attentions(self, attentions: list[Attention]) -> None:
        """FP8 inside of every self-attention that was calibrated."""
        for attention in attentions:
            largest = self.calibration.amax.get(attention.name)
            if largest is not None and attention.name not in self.calibration.keep:
                quantise_attention(self.graph, attention, [float(number) for number in largest], self._pair_of)

    def _pair_of(self, before: ir.Node, value: ir.Value, largest: float, name: str) -> ir.Value:
        return self._pair(before, value, _scale(largest, Precision.FP8), name, {}, Precision.FP8)

    def _quantise(self, linears: list[Linear]) -> None:
        """Linears that share their input share its scale and smoothing."""
        x, first = linears[0].x, linears[0].node
        amax = np.max([self.calibration.amax[linear.name] for linear in linears], axis=0)
        smooth, prefix = None, f"{linears[0].name.removesuffix('.weight')}.input"
        if self.precision is Precision.INT8:
            shrink = _smoothing(amax, linears)
            amax = amax * shrink
            smooth = self._constant(f"{prefix}.smooth", shrink)
            x = self._node(first, "Mul", [x, smooth], x, f"{prefix}.smoothed")
        quantised = self._pair(first, x, _scale(amax.max(), self.precision), prefix, {})
        for linear in linears:
            linear.node.replace_input_with(0, quantised)
            self._quantise_weight(linear, smooth)

    def _quantise_weight(self, linear: Linear, smooth: ir.Value | None) -> None:
        weight = linear.node.inputs[1]
        assert weight is not None
        largest = np.empty(linear.out_features, np.float32)
        factors = 1 if smooth is None else 1 / _numbers(smooth)
        for part, rows in linear.weight_rows():
            largest[part] = np.abs(rows * factors).max(axis=1)
        prefix = linear.name
        if smooth is not None:  # exact: the factors are powers of two
            weight = self._node(linear.node, "Div", [weight, smooth], weight, f"{prefix}.smoothed")
        scale = _scale(largest, self.precision)
        linear.node.replace_input_with(1, self._pair(linear.node, weight, scale, prefix, {"axis": 0}))

    def _pair(
        self,
        before: ir.Node,
        value: ir.Value,
        scale: NDArray[np.float32],
        prefix: str,
        attributes: Mapping[str, Any],
        precision: Precision | None = None,
    ) -> ir.Value:
        """Puts QuantizeLinear and DequantizeLinear behind a value, symmetric; a scale for each row or one for all."""
        scales = self._constant(f"{prefix}.scale", scale)
        kind = _FORMATS[precision or self.precision]
        target = {"output_dtype": kind, **attributes}
        quantised = self._node(before, "QuantizeLinear", [value, scales], value, f"{prefix}.quantised", target)
        quantised.type = ir.TensorType(kind)
        return self._node(
            before, "DequantizeLinear", [quantised, scales], value, f"{prefix}.dequantised", dict(attributes)
        )

    def _node(
        self,
        before: ir.Node,
        op_type: str,
        inputs: list[ir.Value],
        like: ir.Value,
        name: str,
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=name)
        self.graph.insert_before(before, node)
        node.outputs[0].name, node.outputs[0].shape = name, like.shape
        node.outputs[0].type = ir.TensorType(self.half)
        return node.outputs[0]

    def _constant(self, name: str, numbers: NDArray[np.float32]) -> ir.Value:
        array = _round_up(np.asarray(numbers, np.float32), self.half)
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(self.half),
            const_value=ir.tensor(array, name=name),
        )
        self.graph.register_initializer(value)
        return value


def _smoothing(amax: NDArray[np.float32], linears: list[Linear]) -> NDArray[np.float32]:
    """Factors for the channels of the input: powers of two, so that dividing the weight by them is exact."""
    columns = np.zeros_like(amax)
    for linear in linears:
        for _, rows in linear.weight_rows():
            np.maximum(columns, np.abs(rows).max(axis=0), out=columns)
    known = (amax > 0) & (columns > 0)
    ratio = np.where(known, np.maximum(columns, 1e-12) ** (1 - SMOOTHING) / np.maximum(amax, 1e-12) ** SMOOTHING, 1.0)
    ratio /= np.exp2(np.median(np.log2(ratio)))
    factors: NDArray[np.float32] = np.exp2(np.clip(np.rint(np.log2(ratio)), -8, 8)).astype(np.float32)
    return factors


def _scale(largest: Any, precision: Precision) -> NDArray[np.float32]:
    """What one step of the format stands for; a channel of zeros gets 1."""
    largest = np.asarray(largest, np.float32)
    return np.where(largest > 0, largest / _LARGEST[precision], 1.0).astype(np.float32)


def _numbers(value: ir.Value) -> NDArray[np.float32]:
    assert value.const_value is not None
    numbers: NDArray[np.float32] = value.const_value.numpy().astype(np.float32)
    return numbers


def _round_up(numbers: NDArray[np.float32], half: ir.DataType) -> NDArray[Any]:
    """Half numbers not below the given positive ones, so that the largest value stays inside the format."""
    kind: Any = np.float16 if half == ir.DataType.FLOAT16 else ml_dtypes.bfloat16
    flat = np.atleast_1d(numbers)
    rounded = flat.astype(kind)
    short = rounded.astype(np.float32) < flat
    above: NDArray[Any] = (rounded.view(np.uint16) + short.astype(np.uint16)).view(kind)
    return above.reshape(numbers.shape)
