"""Measures the ranges of activations over real evaluations, for static quantisation."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from sora_export.attentions import self_attentions
from sora_export.convolutions import quantisable_convolutions
from sora_export.graph_edit import GraphEditor, dims_of
from sora_export.linears import quantisable_linears
from sora_runtime.errors import EngineError, InvalidRequest
from sora_runtime.machine import available_cores

_FOLDER = "session.model_external_initializers_file_folder_path"
_PREFIX = "amax."


@dataclass(frozen=True)
class CalibrationResult:
    """The largest magnitude of every input channel of every quantisable linear, and of what attention takes.

    `amax` maps a weight's name in the checkpoint to float32 [in_features], and the name of an attention
    to [3]: query, key, value; the ranges of a convolution are [4], see `Convolution.key`. `evaluations`
    says over how many evaluations it was taken. `keep` names layers that lose too much and stay
    unquantised.
    """

    amax: Mapping[str, NDArray[np.float32]]
    evaluations: int
    keep: frozenset[str] = field(default_factory=frozenset)

    def merged(self, other: CalibrationResult) -> CalibrationResult:
        """Of both: another bucket or other prompts of the same component."""
        amax = {**self.amax}
        for name, values in other.amax.items():
            amax[name] = np.maximum(amax[name], values) if name in amax else values
        return CalibrationResult(amax, self.evaluations + other.evaluations, self.keep | other.keep)

    def to_json(self) -> dict[str, Any]:
        """Plain data; the magnitudes as base64 of little-endian float32."""
        amax = {name: base64.b64encode(values.astype("<f4").tobytes()).decode() for name, values in self.amax.items()}
        return {"evaluations": self.evaluations, "keep": sorted(self.keep), "amax": amax}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CalibrationResult:
        """What `to_json` wrote."""
        amax = {name: np.frombuffer(base64.b64decode(text), "<f4") for name, text in data["amax"].items()}
        return cls(amax, data["evaluations"], frozenset(data["keep"]))


def calibrate(graph: Path, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> CalibrationResult:
    """Runs a float32 graph on every feed and keeps the largest magnitude of each channel.

    Args:
        graph: The .onnx file of a float32 bundle; nothing is written beside it.
        feeds: The inputs of every evaluation of some trajectories, by name; taken one by one.

    Raises:
        InvalidRequest: There are no feeds.
        EngineError: ONNX Runtime cannot run the graph.
    """
    model = ir.load(graph)
    watched = _watch(model)
    session = session_of(model, graph.parent)
    outputs = list(dict.fromkeys(watched.values()))
    largest: dict[str, NDArray[np.float32]] = {}
    count = 0
    for feed in feeds:
        count += 1
        if not outputs:
            continue
        try:
            values = session.run(outputs, dict(feed))
        except Exception as error:  # the library raises a dozen unrelated classes
            raise EngineError(f"ONNX Runtime cannot calibrate {graph.name}: {str(error).splitlines()[0]}") from error
        for name, value in zip(outputs, values, strict=True):
            largest[name] = np.maximum(largest[name], value) if name in largest else value
    if count == 0:
        raise InvalidRequest(f"there is nothing to calibrate {graph.name} with; give at least one prompt")
    return CalibrationResult({layer: largest[name] for layer, name in watched.items()}, count)


def _watch(model: ir.Model) -> dict[str, str]:
    """Adds the magnitudes as outputs of the graph; gives the output's name for each linear and attention."""
    graph, names, watched = model.graph, dict[int, str](), dict[str, str]()
    editor = GraphEditor(graph)
    for linear in quantisable_linears(graph):
        if id(linear.x) not in names:
            name = names[id(linear.x)] = f"{_PREFIX}{len(names)}"
            _add_output(editor, name, _largest(editor, linear.node, linear.x, [0], (linear.in_features,)))
        watched[linear.name] = names[id(linear.x)]
    for attention in self_attentions(graph):
        node = attention.node
        values = [value for value in node.inputs if value is not None]
        parts = [_largest(editor, node, value, [0, 1, 2], ()) for value in values]
        watched[attention.name] = f"{_PREFIX}{attention.name}"
        rows = [editor.reshape(node, part, (1,)) for part in parts]
        _add_output(editor, watched[attention.name], editor.node(node, "Concat", rows, (len(rows),), {"axis": 0}))
    for convolution in quantisable_convolutions(graph):
        node = convolution.node
        ends = [end for value in (convolution.x, node.outputs[0]) for end in _ends(editor, value)]
        watched[convolution.key] = f"{_PREFIX}{convolution.key}"
        _add_output(editor, watched[convolution.key], _appended(editor, "Concat", ends, (4,), {"axis": 0}))
    return watched


def _ends(editor: GraphEditor, value: ir.Value) -> list[ir.Value]:
    """-min and max of a value, [1] each."""
    dims = dims_of(value) or ()
    axes = editor.ints(list(range(len(dims))))
    ends = []
    for turned in (_appended(editor, "Neg", [value], dims), value):
        largest = _appended(editor, "ReduceMax", [turned, axes], (), {"keepdims": 0})
        ends.append(_appended(editor, "Reshape", [largest, editor.ints([1])], (1,)))
    return ends


def _appended(
    editor: GraphEditor,
    op_type: str,
    inputs: list[ir.Value],
    dims: tuple[int, ...],
    attributes: Mapping[str, Any] | None = None,
) -> ir.Value:
    """A node behind all others, so that it may take any value."""
    node = ir.node(op_type, inputs, attributes)
    editor.graph.append(node)
    node.outputs[0].shape, node.outputs[0].type = ir.Shape(dims), inputs[0].type
    return node.outputs[0]


def _largest(editor: GraphEditor, before: ir.Node, value: ir.Value, axes: list[int], dims: tuple[int, ...]) -> ir.Value:
    magnitude = editor.node(before, "Abs", [value], dims_of(value) or ())
    return editor.node(before, "ReduceMax", [magnitude, editor.ints(axes)], dims, {"keepdims": 0})


def _add_output(editor: GraphEditor, name: str, value: ir.Value) -> None:
    value.name = name
    value.type = ir.TensorType(ir.DataType.FLOAT)
    editor.graph.outputs.append(value)


def session_of(model: ir.Model, folder: Path) -> Any:
    """An ONNX Runtime session of a graph in memory whose weights lie under `folder`.

    Raises:
        EngineError: ONNX Runtime cannot load it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.log_severity_level = 4
    options.add_session_config_entry(_FOLDER, str(folder))
    data = ir.to_proto(model).SerializeToString()
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # see calibrate
        raise EngineError(f"ONNX Runtime cannot load the graph to calibrate: {str(error).splitlines()[0]}") from error
