"""What every graph of every family has to be free of; `assert_clean` is for the families' own tests."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_ir as ir

from sora_export.graph_edit import dims_of
from sora_export.graph_report import shape_arithmetic

FOLDED = ("Reshape", "Transpose", "Cast", "Expand")
"""Two of the same in a row are one."""


def assert_clean(model: ir.Model | Path, *, attentions: int | None = None, softmaxes: int = 0) -> None:
    """Fails with a list of what does not belong into a graph of static shapes.

    Args:
        model: A model or the path of its file.
        attentions: How many `Attention` operators there must be, one for each attention of the model.
        softmaxes: How many Softmax operators the model has besides its attention.
    """
    graph = (ir.load(model) if isinstance(model, Path) else model).graph
    operators = Counter(node.op_type for node in graph)
    faults = [f"{count} {name}" for name, count in shape_arithmetic(graph).items()]
    faults += [f"{operators[name]} {name}" for name in ("Dropout", "Constant") if operators[name]]
    faults += [f"{operators[name]} {name}, which is a Reshape" for name in ("Squeeze", "Unsqueeze") if operators[name]]
    for node in graph:
        faults += _faults(node)
    if operators["Softmax"] != softmaxes:
        faults.append(f"{operators['Softmax']} Softmax, not {softmaxes}: an attention is in pieces")
    if attentions is not None and operators["Attention"] != attentions:
        faults.append(f"{operators['Attention']} Attention, not {attentions}")
    assert not faults, "\n".join(faults)


def _faults(node: ir.Node) -> list[str]:
    found = [f"{value.name} has no static shape" for value in node.outputs if dims_of(value) is None]
    value = node.inputs[0] if node.inputs else None
    producer = value.producer() if value is not None else None
    if producer is not None and node.op_type in FOLDED and producer.op_type == node.op_type:
        found.append(f"{node.op_type} of {node.op_type} at {node.outputs[0].name}")
    if node.op_type == "Identity" and value is not None and producer is not None and not value.is_graph_output():
        found.append(f"Identity of {value.name}")
    same = dims_of(value) == dims_of(node.outputs[0])
    if value is not None and node.op_type in ("Reshape", "Expand") and same:
        found.append(f"{node.op_type} of {value.name} to the shape it has")
    if value is not None and node.op_type == "Cast" and value.dtype == node.outputs[0].dtype:
        found.append(f"Cast of {value.name} to the type it has")
    if node.op_type == "ReduceMean" and producer is not None and producer.op_type == "Pow" and _over_channels(node):
        found.append(f"a norm in pieces at {node.outputs[0].name}")
    return found


def _over_channels(reduce: ir.Node) -> bool:
    """Whether it reduces the last axis alone, as LayerNormalization and RMSNormalization do."""
    axes = reduce.inputs[1].const_value if len(reduce.inputs) > 1 and reduce.inputs[1] is not None else None
    rank = len(dims_of(reduce.inputs[0]) or ())
    return axes is not None and [int(axis) % rank for axis in axes.numpy()] == [rank - 1]
