"""What `sora-bench validate` prints: errors by group, how often the band holds, and the worst rows with reasons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from sora_runtime.cli.listing import listing
from sora_runtime.cli.tables import facts
from sora_runtime.cost.validate import KINDS, likely_reason, summarise, summary

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sora_runtime.bench.against import Measured
    from sora_runtime.cost.validate import Compared, Summary

_NUMBERS = ("rows", "median", "p90", "bias", "in band")
_MOST_GROUPS = 24


def tables(compared: Sequence[Compared], how: str, left_out: int, worst: int) -> Iterator[RenderableType]:
    """All tables, the one by kind first."""
    kinds = sorted(summarise(compared, lambda each: each.case.kind), key=lambda group: KINDS.index(group.name))
    yield _groups("kind of row", [*kinds, summary("all", compared)])
    for name, key in _KEYS.items():
        yield _groups(name, summarise(compared, key)[:_MOST_GROUPS])
    if worst:
        yield _worst(sorted(compared, key=lambda each: -abs(each.error))[:worst])
    yield facts(
        [
            ("predicted", how),
            ("median, p90", "of the absolute error against the published time; bias: median of the signed error"),
            ("in band", "measurements between our p10 and p90; 80% if the band is honest"),
            ("rows", "that state size, frames, steps, GPU and seconds and are not marked doubtful in the catalogue"),
        ]
    )
    if left_out:
        yield facts([("left out", f"{left_out} rows of the file: incomplete, or of an unknown model or GPU")])


_KEYS: dict[str, Callable[[Compared], str]] = {
    "GPU": lambda each: each.case.gpu.id,
    "engine": lambda each: each.case.setting.engine.name,
    "scope": lambda each: each.case.scope,
    "model": lambda each: each.case.model.name,
    "source": lambda each: each.case.source,
}


def _groups(name: str, groups: Sequence[Summary]) -> RenderableType:
    rows = [
        (g.name, str(g.rows), f"{g.median:.1%}", f"{g.p90:.1%}", f"{g.bias:+.1%}", f"{g.inside:.0%}") for g in groups
    ]
    return listing((name, *_NUMBERS), rows, whole=(name,), numbers=_NUMBERS, gap=3)


def _worst(compared: Sequence[Compared]) -> RenderableType:
    rows = [
        (
            each.case.id,
            f"{each.case.gpu_count} x {each.case.gpu.id}",
            f"{each.case.seconds:.4g}",
            f"{each.prediction.p50:.4g}",
            f"{each.error:+.0%}",
            likely_reason(each) or "-",
        )
        for each in compared
    ]
    names = ("worst rows", "on", "s", "predicted", "error", "likely because")
    return listing(names, rows, whole=names[:2], numbers=names[2:5], gap=2)


def machine_tables(found: Sequence[Measured]) -> Iterator[RenderableType]:
    """Predicted beside measured clips of one bundle."""
    rows = [
        (
            each.what,
            f"{each.p10:.3g}",
            f"{each.p50:.3g}",
            f"{each.p90:.3g}",
            f"{each.seconds:.3g}",
            f"{each.error:+.1%}",
        )
        for each in found
    ]
    names = ("clip", "p10", "p50", "p90", "measured s", "error")
    yield listing(names, rows, whole=("clip",), numbers=names[1:], gap=3)
    errors = sorted(abs(each.error) for each in found)
    inside = sum(each.p10 <= each.seconds <= each.p90 for each in found)
    yield facts(
        [
            ("error", f"median {errors[len(errors) // 2]:.1%}, worst {errors[-1]:.1%}"),
            ("in band", f"{inside} of {len(found)}"),
            ("predicted", found[0].origin),
        ]
    )
