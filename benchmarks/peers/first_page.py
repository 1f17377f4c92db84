"""The first page's few rows out of the record: what a clip costs here beside what it costs elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.peers.tables import Row, accuracy, fastest_peer, ratio, times_faster, where

# Rows of the levers, from the one that does all the work to the one that does least.
_SHOWN = {
    "equal": "the same work, fp32",
    "int8": "the same work, int8",
    "together": "int8, 20 steps, guidance where it matters",
    "distilled-int8": "int8, distilled to 4 steps",
}
_LARGE = "wan-1.3b-30"
_CLOSE = 0.02  # relative L2 of a forward that counts as the same


def first_page(record: Mapping[str, Any]) -> str:
    """In Markdown; empty where clips or the large transformer were not measured."""
    if "levers" not in record or _LARGE not in record.get("forward", {}):
        return ""
    part = record["levers"]
    rows = {row["name"]: row for row in part["rows"]}
    fastest = fastest_peer(part["rows"])
    lines = [
        f"`wan-pocket`, {part['prompts']} clips each, diffusers at its {part['steps']} steps; {where(part)}:",
        "",
        "| | evaluations | cheaper than diffusers | than the fastest other engine "
        "| colour / shape / motion / background |",
        "|---|---|---|---|---|",
    ]
    base = rows["diffusers"]
    lines.append(f"| {base['label']} | {base['evaluations']:.0f} | - | - | {accuracy(base)} |")
    for name, label in _SHOWN.items():
        ratios = [ratio(rows.get(other), rows[name]) for other in ("diffusers", fastest)]
        lines.append(f"| {label} | {rows[name]['evaluations']:.0f} | {' | '.join(ratios)} | {accuracy(rows[name])} |")
    return "\n".join([*lines, "", _large(record["forward"][_LARGE])])


def _large(part: Mapping[str, Any]) -> str:
    """A sentence on one forward of the large transformer."""
    rows: list[Row] = [row for row in part["rows"] if row["refused"] is None]
    ours = next(row for row in rows if row["name"] == "ours-int8")
    peers = [row for row in rows if not row["ours"] and row["relative_l2"] <= _CLOSE]
    faster = {row["label"]: times_faster(row["seconds"], row["anchor_seconds"]) for row in peers}
    nearest = min(faster, key=lambda label: faster[label])
    base = next(row for row in rows if row["name"] == "diffusers")
    memory = ours["peak_bytes"] / base["peak_bytes"]
    return (
        f"One forward of a transformer as wide as Wan 2.1 1.3B, {part['layers']} layers, {part['tokens']} tokens, in "
        f"int8 (relative error {ours['relative_l2']:.1e}): {faster[base['label']]:.1f} times faster than "
        f"{base['label']} in {memory:.2f} of its memory, {faster[nearest]:.2f} times faster than {nearest}, the "
        f"fastest other one within {_CLOSE:g}."
    )
