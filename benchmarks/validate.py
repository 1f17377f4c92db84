"""Predictions against published latencies, each source by rates that never saw it, for the README's table.

`sora-bench validate` prints the same with every group and the worst rows.
"""

from dataclasses import asdict
from typing import Any

from sora_runtime.cost.validate import KINDS, complete_cases, held_out, summarise, summary


def measure() -> dict[str, Any]:
    """Fit without each source in turn; about two minutes."""
    compared = held_out(complete_cases(), print)
    kinds = {group.name: group for group in summarise(compared, lambda each: each.case.kind)}
    groups = [*(kinds[name] for name in KINDS if name in kinds), summary("all", compared)]
    return {
        "sources": sorted({each.case.source for each in compared}),
        "groups": [asdict(group) for group in groups],
        "by_source": [asdict(group) for group in summarise(compared, lambda each: each.case.source)],
    }


def table(result: dict[str, Any]) -> str:
    """The groups in Markdown."""
    lines = ["| rows | number | median error | 90% of errors below | in the p10-p90 band |", "|---|---|---|---|---|"]
    lines += [
        f"| {group['name']} | {group['rows']} | {group['median']:.1%} | {group['p90']:.1%} | {group['inside']:.0%} |"
        for group in result["groups"]
    ]
    return "\n".join(lines)
