"""What `sora-bench inspect` shows of graphs, from the reports that the builder put into bundle.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from sora_runtime.errors import BundleError

if TYPE_CHECKING:
    from rich.console import RenderableType

Records = Mapping[str, Mapping[str, object]]
"""bundle.json's "reports"."""


class Activation(BaseModel):
    """The largest value that an operator computes."""

    name: str
    dims: list[int]
    bytes: int


class GraphReport(BaseModel):
    """What `sora_export.graph_report.report` says of a graph."""

    operators: dict[str, int]
    num_operators: int
    flops: int | None
    flops_by_operator: dict[str, int] | None
    flops_reason: str | None = None
    parameters: int
    parameter_bytes: dict[str, int]
    input_bytes: int
    output_bytes: int
    largest_activation: Activation | None
    casts: int
    quantizers: int
    dequantizers: int
    shape_arithmetic: dict[str, int]


def read_report(graph: str, reports: Records) -> GraphReport | None:
    """The report of a graph, or None if the bundle was built without.

    Raises:
        BundleError: It is damaged.
    """
    if graph not in reports:
        return None
    try:
        return GraphReport.model_validate(reports[graph])
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BundleError(
            f"the report of '{graph}' in bundle.json is damaged at {where}; rebuild the bundle"
        ) from error


def summary(graphs: Iterable[str], reports: Records) -> RenderableType:
    """One row a graph: operators, FLOPs of one run, parameters, and bytes of the weights it reads."""
    from sora_runtime.cli.tables import columns

    names = ("graph", "operators", "FLOPs", "parameters", "weights")
    return columns(names, (_row(graph, reports) for graph in graphs), numbers=names[1:])


def details(graph: str, reports: Records) -> Iterator[RenderableType]:
    """Everything the report says of one graph; a missing one is said to be missing."""
    from sora_runtime.cli.tables import columns, facts

    report = read_report(graph, reports)
    if report is None:
        yield facts([("graph", graph), ("report", "none: the bundle was built without; rebuild it")])
        return
    yield facts([("graph", graph), *_facts(report)])
    flops = report.flops_by_operator or {}
    rows = ((name, str(n), count(flops[name]) if name in flops else "") for name, n in report.operators.items())
    yield columns(("operator", "count", "FLOPs"), rows, numbers={"count", "FLOPs"})


def count(number: float) -> str:
    """A number of things with three digits and the letter of its thousands: 18.9 T, 834 M, 12."""
    for letter, exponent in (("P", 15), ("T", 12), ("G", 9), ("M", 6), ("k", 3)):
        if number >= 10**exponent:
            value = number / 10**exponent
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {letter}"
    return str(number)


def _row(graph: str, reports: Records) -> tuple[str, ...]:
    from sora_runtime.cli.tables import byte_size

    report = read_report(graph, reports)
    if report is None:
        return graph, "", "", "", ""
    weights = byte_size(sum(report.parameter_bytes.values()))
    return graph, str(report.num_operators), _flops(report), count(report.parameters), weights


def _flops(report: GraphReport) -> str:
    return "unknown" if report.flops is None else count(report.flops)


def _facts(report: GraphReport) -> Iterator[tuple[str, str]]:
    from sora_runtime.cli.tables import byte_size

    stored = ", ".join(f"{byte_size(size)} of {dtype}" for dtype, size in report.parameter_bytes.items())
    yield "operators", str(report.num_operators)
    yield "FLOPs", f"{_flops(report)} ({report.flops_reason})" if report.flops_reason else _flops(report)
    yield "parameters", f"{count(report.parameters)} ({stored})" if stored else count(report.parameters)
    yield "inputs", byte_size(report.input_bytes)
    yield "outputs", byte_size(report.output_bytes)
    largest = report.largest_activation
    if largest is not None:
        yield "largest", f"{byte_size(largest.bytes)}: {largest.name} {'x'.join(map(str, largest.dims))}"
    yield "casts", str(report.casts)
    yield "quantised", f"{report.quantizers} QuantizeLinear, {report.dequantizers} DequantizeLinear"
    left = report.shape_arithmetic
    yield "leftovers", ", ".join(f"{number} {name}" for name, number in left.items()) or "no shape arithmetic"
