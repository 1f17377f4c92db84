"""Says before a build how long it will take and how much memory and disk it needs: estimates, with their origin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from sora_export.external_data import StoredTensor, read_weights
from sora_runtime.errors import InvalidRequest

BYTES_PER_PARAMETER = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "nvfp4": 0.5625}
"""In an engine of that precision; nvfp4: 4 bits and an 8-bit scale for every 16."""
_QUANTISED = ("fp8", "int8", "nvfp4")
_MACHINE = "2 shared cores of an AMD EPYC without a GPU; TensorRT-RTX 1.7.1, torch 2.13"


@dataclass(frozen=True)
class Coefficient:
    """One measured number of the estimate; the truth lies between value / band and value * band."""

    value: float
    unit: str
    band: float
    origin: str


COEFFICIENTS = {
    "nodes_per_tensor": Coefficient(
        3.0, "nodes", 1.7, "Wan transformers of 2 to 20 layers: 2.6; wan-pocket: 3.4, its VAE 2.9 to 3.7, its UMT5 4.5"
    ),
    "export_seconds_per_node": Coefficient(
        0.011, "s", 3.0, "onnx_from_torch, Wan 14B widths at 480x832x81: 605 nodes 6.3 s, 1445 nodes 16.0 s"
    ),
    "export_base_bytes": Coefficient(
        0.54e9, "B", 1.5, "peak of the process: 0.54, 0.56, 0.60 GB at 183, 605, 1445 nodes; torch alone 0.48 GB"
    ),
    "export_bytes_per_node": Coefficient(46e3, "B", 3.0, "the same three"),
    "graph_bytes_per_node": Coefficient(300.0, "B", 2.0, "graphs of wan-pocket: 190 to 330"),
    "quantise_seconds_per_parameter": Coefficient(
        4.4e-9, "s", 3.0, "largest value, division, rounding of one 5120 x 5120 float32 tensor in NumPy, one thread"
    ),
    "merge_seconds_per_parameter": Coefficient(
        2.9e-8, "s", 3.0, "rank 64 into 54 bfloat16 matrices of Wan 14B's widths: 62 s of processor time, one thread"
    ),
    "engine_base_seconds": Coefficient(0.1, "s", 3.0, "a graph of two small attentions"),
    "engine_seconds_per_node": Coefficient(
        2.5e-3, "s", 2.0, "840 nodes with 31 MB of weights: 2.4 s; 448 nodes: 1.6 s"
    ),
    "engine_seconds_per_byte_half": Coefficient(
        7e-9, "s", 1.6, "fp16: 0.84 GB 6.5 s, 0.42 GB 3.3 s, 0.23 GB 1.6 and 2.1 s"
    ),
    "engine_seconds_per_byte_quantised": Coefficient(
        2.5e-9, "s", 2.0, "fp8: 0.42 GB 0.9 and 2.0 s; int8: 0.11 GB 0.8 s"
    ),
    "engine_base_bytes": Coefficient(0.28e9, "B", 1.3, "peak less weights and nodes; Python and library 0.19 GB of it"),
    "engine_bytes_per_node": Coefficient(0.28e6, "B", 1.5, "840 nodes: 0.61 GB with 31 MB of weights"),
    "engine_bytes_per_weight_byte": Coefficient(3.0, "B", 1.2, "0.11 to 0.84 GB in fp16, int8, fp8: 2.7 to 3.1"),
    "plan_base_bytes": Coefficient(0.7e6, "B", 2.0, "weights as inputs: 1.3 MB at 56 nodes, 2.6 MB at 168"),
    "plan_bytes_per_node": Coefficient(12.5e3, "B", 2.0, "840 nodes: 10.1 MB beside the weights; 448: 5.8 MB"),
    "log_bytes_per_node": Coefficient(1.8e3, "B", 2.0, "840 nodes: 1.5 MB"),
}


@dataclass(frozen=True)
class ComponentSize:
    """What is to be built of a component."""

    name: str
    parameters: int
    tensors: int
    stored_bytes: int
    largest_tensor: int
    """Parameters of the largest tensor."""
    graphs: int
    """Number of graphs of it: one for each shape bucket, two for a chunked VAE."""


@dataclass(frozen=True)
class Estimate:
    """A number that was not measured; the truth is expected between `low` and `high`."""

    value: float
    low: float
    high: float
    estimated: bool = True


@dataclass(frozen=True)
class Phase:
    """One stage of a build."""

    name: str
    seconds: Estimate
    peak_memory_bytes: Estimate
    disk_bytes: Estimate
    """What it adds to the disk."""


@dataclass(frozen=True)
class BuildPlan:
    """What a build will take; phases run one after the other."""

    phases: tuple[Phase, ...]
    seconds: Estimate
    peak_memory_bytes: Estimate
    disk_bytes: Estimate
    calibration_seconds: None
    reason: str
    measured_on: str

    def record(self) -> dict[str, Any]:
        """As JSON, with every coefficient and its origin."""
        return {**asdict(self), "coefficients": {name: asdict(value) for name, value in COEFFICIENTS.items()}}


def component_size(name: str, files: Sequence[Path], graphs: int) -> ComponentSize:
    """Sizes of a component from the headers of its safetensors files.

    Raises:
        BundleError: A file is damaged.
    """
    tensors = read_weights(files).values()
    counts = [prod(tensor.shape) for tensor in tensors]
    size = sum(tensor.length for tensor in tensors)
    return ComponentSize(name, sum(counts), len(counts), size, max(counts, default=0), graphs)


def plan_build(
    components: Sequence[ComponentSize],
    *,
    precision: str,
    merged: Sequence[StoredTensor] = (),
    plans_per_graph: int = 0,
    weights_in_plan: bool = True,
) -> BuildPlan:
    """Estimates a build of `components`.

    Args:
        components: Their sizes.
        precision: Of the engine: a key of BYTES_PER_PARAMETER.
        merged: The checkpoint's tensors that adapters change.
        plans_per_graph: Engines for each graph, one for each target; 0: ONNX Runtime, which builds none.
        weights_in_plan: False where the weights are inputs of the engine.

    Raises:
        InvalidRequest: The precision is unknown.
    """
    if precision not in BYTES_PER_PARAMETER:
        raise InvalidRequest(f"precision '{precision}' is unknown; use {', '.join(BYTES_PER_PARAMETER)}")
    phases = [*([_merge(merged)] if merged else []), _export(components)]
    if precision in _QUANTISED:
        phases.append(_quantise(components, precision))
    if plans_per_graph:
        phases.append(_engines(components, precision, plans_per_graph, weights_in_plan))
    reason = "calibration runs the model: its time depends on the prompts and steps, and is known after the first one"
    return BuildPlan(
        phases=tuple(phases),
        seconds=_sum(phase.seconds for phase in phases),
        peak_memory_bytes=max((phase.peak_memory_bytes for phase in phases), key=lambda estimate: estimate.high),
        disk_bytes=_sum(phase.disk_bytes for phase in phases),
        calibration_seconds=None,
        reason=reason if precision in _QUANTISED else "this precision needs no calibration",
        measured_on=_MACHINE,
    )


def _merge(tensors: Sequence[StoredTensor]) -> Phase:
    counts = [prod(tensor.shape) for tensor in tensors]
    size = float(sum(tensor.length for tensor in tensors))
    base = _estimate(("export_base_bytes", 1))
    # One tensor at a time: in float32, its change, and in its own type.
    working = 12.0 * max(counts)
    return Phase(
        "merge",
        _estimate(("merge_seconds_per_parameter", sum(counts))),
        Estimate(base.value + working, base.low + working, base.high + 2 * working),
        Estimate(size, size, size),
    )


def _export(components: Sequence[ComponentSize]) -> Phase:
    nodes = [(_nodes(component), component.graphs) for component in components]
    most = max((count for count, _ in nodes), default=0.0)
    every = sum(count * graphs for count, graphs in nodes)
    return Phase(
        "export",
        _estimate(("export_seconds_per_node", every)),
        _estimate(("export_base_bytes", 1), ("export_bytes_per_node", most)),
        _estimate(("graph_bytes_per_node", every)),
    )


def _quantise(components: Sequence[ComponentSize], precision: str) -> Phase:
    parameters = sum(component.parameters for component in components)
    largest = max((component.largest_tensor for component in components), default=0)
    stored = parameters * BYTES_PER_PARAMETER[precision]
    # One tensor at a time: in float32, divided, rounded, and in its new type.
    working = 13.0 * largest
    base = _estimate(("export_base_bytes", 1))
    return Phase(
        "quantise",
        _estimate(("quantise_seconds_per_parameter", parameters)),
        Estimate(base.value + working, base.low + working, base.high + 2 * working),
        Estimate(stored, stored, 1.3 * stored),  # the layers that stay in high precision
    )


def _engines(components: Sequence[ComponentSize], precision: str, plans_per_graph: int, in_plan: bool) -> Phase:
    per_parameter = BYTES_PER_PARAMETER[precision]
    speed = "engine_seconds_per_byte_" + ("quantised" if precision in _QUANTISED else "half")
    seconds, memory, disk = [], [], []
    for component in components:
        nodes, plans = _nodes(component), component.graphs * plans_per_graph
        weights = component.parameters * per_parameter if in_plan else 0.0
        seconds.append(
            _estimate(
                ("engine_base_seconds", plans), ("engine_seconds_per_node", nodes * plans), (speed, weights * plans)
            )
        )
        memory.append(
            _estimate(
                ("engine_base_bytes", 1),
                ("engine_bytes_per_node", nodes),
                ("engine_bytes_per_weight_byte", weights),
            )
        )
        plan = _estimate(
            ("plan_base_bytes", plans), ("plan_bytes_per_node", nodes * plans), ("log_bytes_per_node", nodes * plans)
        )
        kept = weights * plans
        disk.append(Estimate(plan.value + kept, plan.low + kept, plan.high + kept))
    return Phase("engines", _sum(seconds), max(memory, key=lambda estimate: estimate.high), _sum(disk))


def _nodes(component: ComponentSize) -> float:
    return COEFFICIENTS["nodes_per_tensor"].value * component.tensors


def _estimate(*terms: tuple[str, float]) -> Estimate:
    """The sum of coefficient times amount, each within its band."""
    parts = [(COEFFICIENTS[name], amount) for name, amount in terms]
    return Estimate(
        sum(part.value * amount for part, amount in parts),
        sum(part.value / part.band * amount for part, amount in parts),
        sum(part.value * part.band * amount for part, amount in parts),
    )


def _sum(estimates: Iterable[Estimate]) -> Estimate:
    parts = list(estimates)
    return Estimate(sum(e.value for e in parts), sum(e.low for e in parts), sum(e.high for e in parts))
