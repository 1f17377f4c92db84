"""What `sora-bench plan --published` prints: each step as stated, as computed, and with our numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from sora_runtime.cli.plan_tables import assumptions
from sora_runtime.cli.tables import columns, facts, print_all
from sora_runtime.cost.published import Published, Step

if TYPE_CHECKING:
    from rich.console import RenderableType

_FIGURES = ("stated", "computed", "dense peak", "with ours")


def print_published(model: str, result: Published) -> None:
    """Prints a published calculation as tables of 80 columns."""
    print_all(_tables(model, result))


def published_csv(result: Published) -> str:
    """One row a step."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(Step)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(step) for step in result.steps)
    return file.getvalue()


def figure(value: float | None, unit: str) -> str:
    """A number with as many digits as its step needs; large ones in millions or thousands of millions."""
    if value is None:
        return "-"
    for size, name in ((1e9, "G"), (1e6, "M")):
        if unit in {"min/day", "USD"} and abs(value) >= size:
            return f"{value / size:.4g}{name}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _tables(model: str, result: Published) -> Iterator[RenderableType]:
    yield facts(
        [
            ("published", f"{result.title} ({result.author}, {result.date})"),
            ("source", result.source),
            ("ours", model),
        ]
    )
    rows = [_row(number, step) for number, step in enumerate(result.steps, 1)]
    yield columns(("", "step", *_FIGURES), rows, numbers=("", *_FIGURES))
    yield facts([(f"step {number}", step.how) for number, step in enumerate(result.steps, 1)])
    yield facts([("note", remark) for remark in result.remarks])
    if result.ours:
        yield assumptions(result.ours.plan)


def _row(number: int, step: Step) -> tuple[str, ...]:
    what = f"{step.what}, {step.unit}" if step.unit else step.what
    values = (step.stated, step.computed, step.dense, step.ours)
    return str(number), what, *(figure(value, step.unit) for value in values)
