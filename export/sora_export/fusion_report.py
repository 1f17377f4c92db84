"""What a builder made of a graph: fused attention, left-over casts and Q/DQ pairs, from the list of layers it logs."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx

SOURCE = "the builder's log"
_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), (?P<tensors>Inputs: \[.*?\]), Outputs: ", re.M)
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_DTYPE = re.compile(r"Datatype: (\w+)")
_QUANTISED = {"Int8", "FP8", "Int4", "FP4"}
# A kernel of generated code is named after its operations; these alone move or retype data.
_MOVES = {"Resh", "Tran", "Move", "Slic", "Copy", "Conc", "Expa", "Sque", "Unsq"}


@dataclass(frozen=True)
class FusionReport:
    """Counts, and the nodes behind those that are no good. None: not known, for `reason`."""

    attention_ops: int
    """`Attention` nodes of the graph."""
    fused_attention: int | None
    """Those that became one fused kernel."""
    unfused_attention: tuple[str, ...] | None
    attention_types: dict[str, int] | None
    """How many of the fused kernels take which type (the library's name: ``Half``, ``BFloat16``, ``FP8``)."""
    quantised_ops: int
    """Gemm, MatMul and Conv nodes of the graph between `DequantizeLinear` and another node."""
    quantised_run: int | None
    """Those whose layer takes both factors in 8 bits or fewer. The others dequantise first: a left-over Q/DQ pair."""
    left_over_quantised: tuple[str, ...] | None
    cast_nodes: int
    """`Cast` nodes of the graph."""
    cast_layers: int | None
    """Layers that do nothing but change a type or move data, the type with it."""
    layers: int | None
    layer_kinds: dict[str, int] | None
    source: str | None
    reason: str | None = None


def fusion_report(graph: Path, layers: str | None) -> FusionReport:
    """Compares a graph with the layers of its engine.

    Args:
        graph: The .onnx file; its weights are not read.
        layers: The builder's message that begins with ``Layers:``, which it logs with detailed profiling verbosity;
            None if there was none.

    A target's device compiles a TensorRT-RTX plan again when it loads it; the list is of the form in the plan, the
    one that all its targets share.
    """
    model = onnx.load(graph, load_external_data=False)
    nodes = list(model.graph.node)
    attention = [node.name for node in nodes if node.op_type == "Attention"]
    quantised = _quantised_nodes(nodes)
    casts = sum(node.op_type == "Cast" for node in nodes)
    found = list(_LAYER.finditer(layers or ""))
    if not found:
        reason = "the builder's log lists no layers; another logger may have been registered in this process first"
        return FusionReport(
            len(attention), None, None, None, len(quantised), None, None, casts, None, None, None, None, reason
        )
    lines = [(match, _line_after(layers or "", match)) for match in found]
    fused = {node for match, line in lines if _is_fused_attention(match["name"]) for node in _NODE.findall(line)}
    run = {node for match, line in lines if _multiplies_quantised(match["tensors"]) for node in _NODE.findall(line)}
    types = Counter(_DTYPE.findall(match["tensors"])[0] for match in found if _is_fused_attention(match["name"]))
    unfused = tuple(name for name in attention if name not in fused)
    left_over = tuple(name for name in quantised if name not in run)
    return FusionReport(
        attention_ops=len(attention),
        fused_attention=len(attention) - len(unfused),
        unfused_attention=unfused,
        attention_types=dict(types),
        quantised_ops=len(quantised),
        quantised_run=len(quantised) - len(left_over),
        left_over_quantised=left_over,
        cast_nodes=casts,
        cast_layers=sum(_only_casts(match["name"]) for match in found),
        layers=len(found),
        layer_kinds=dict(Counter(match["kind"] for match in found)),
        source=SOURCE,
    )


def _line_after(text: str, match: re.Match[str]) -> str:
    end = text.find("\n", match.end())
    return text[match.start() : end if end >= 0 else len(text)]


def _multiplies_quantised(tensors: str) -> bool:
    return sum(dtype in _QUANTISED for dtype in _DTYPE.findall(tensors)) >= 2


def _is_fused_attention(name: str) -> bool:
    return "mha" in name.lower() or "fmha" in name.lower()


def _only_casts(name: str) -> bool:
    """Whether a layer such as ``__myl_ReshCastTran_myl0_7`` casts and computes nothing."""
    generated = re.match(r"__myl_([A-Za-z]+?)_myl", name)
    operations = re.findall(r"[A-Z][a-z]*", generated[1]) if generated else []
    return "Cast" in operations and not set(operations) - _MOVES - {"Cast"}


def _quantised_nodes(nodes: list[onnx.NodeProto]) -> list[str]:
    dequantised = {output for node in nodes if node.op_type == "DequantizeLinear" for output in node.output}
    return [
        node.name
        for node in nodes
        if node.op_type in {"Gemm", "MatMul", "Conv"} and all(name in dequantised for name in node.input[:2])
    ]
