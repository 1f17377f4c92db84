"""The record as Markdown: one table for each part, every ratio paired within its round."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
_ATTRIBUTES = ("colour", "shape", "motion", "background")


def tables(record: Mapping[str, Any]) -> str:
    """All parts that were measured."""
    found = []
    if "clips" in record:
        found.append(_clips(record["clips"]))
    if "levers" in record:
        found.append(_levers(record["levers"]))
    if "cold" in record:
        found.append(_cold(record["cold"]))
    found += [_forward(name, part) for name, part in record.get("forward", {}).items()]
    return "\n\n".join(found)


def times_faster(slower: Sequence[float], faster: Sequence[float]) -> float:
    """How many times less the second takes: the median over the rounds that both took part in."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=False))


def fastest_peer(rows: Sequence[Row], key: str = "seconds") -> str | None:
    """The name of the row with the least median time that is not this runtime's."""
    peers = [row for row in rows if not row["ours"] and row.get(key)]
    return min(peers, key=lambda row: statistics.median(row[key]))["name"] if peers else None


def _clips(part: Mapping[str, Any]) -> str:
    rows = {row["name"]: row for row in part["rows"]}
    lines = [
        f"wan-pocket, {part['prompts']} clips of {part['steps']} steps, {where(part)}:",
        "",
        "| engine | a clip | this runtime, fp32, is faster | int8 is faster | peak memory | latents against diffusers "
        "| frames | colour / shape / motion / background |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in part["rows"]:
        if row["refused"] is not None:
            lines.append(_refusal(row, 8))
            continue
        ratios = [ratio(row, rows.get(name)) for name in ("ours", "ours-int8")]
        cells = [_seconds(row), *ratios, _memory(row), _l2(row), _decibels(row), accuracy(row)]
        lines.append(f"| {row['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _levers(part: Mapping[str, Any]) -> str:
    rows = {row["name"]: row for row in part["rows"]}
    fastest = fastest_peer(part["rows"])
    against = rows[fastest]["label"] if fastest else "the fastest peer"
    lines = [
        f"wan-pocket, {part['prompts']} clips, against the peers at {part['steps']} steps, {where(part)}:",
        "",
        f"| what | evaluations | a clip | faster than diffusers eager | than {against} | frames against diffusers "
        "| colour / shape / motion / background |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in part["rows"]:
        if row["refused"] is not None:
            lines.append(_refusal(row, 7))
            continue
        ratios = [ratio(rows.get(name), row) for name in ("diffusers", fastest)]
        cells = [f"{row['evaluations']:.0f}", _seconds(row), *ratios, _decibels(row), accuracy(row)]
        lines.append(f"| {row['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cold(part: Mapping[str, Any]) -> str:
    rows = {row["name"]: row for row in part["rows"]}
    key = "first_frame_seconds"
    lines = [
        f"wan-pocket, a new process for each of {part['rounds']} clips of {part['steps']} steps, {where(part)}:",
        "",
        "| engine | to the first frame | to the last | share of diffusers' time to the first | peak memory |",
        "|---|---|---|---|---|",
    ]
    for row in part["rows"]:
        if row["refused"] is not None:
            lines.append(_refusal(row, 5))
            continue
        base = rows.get("diffusers")
        known = base is not None and base.get(key)
        share = f"{1 / times_faster(base[key], row[key]):.2f}" if known else "-"  # type: ignore[index]
        cells = [f"{statistics.median(row[name]):.2f} s" for name in (key, "clip_seconds")]
        lines.append(f"| {row['label']} | {' | '.join(cells)} | {share} | {_memory(row)} |")
    return "\n".join(lines)


def _forward(name: str, part: Mapping[str, Any]) -> str:
    rows = {row["name"]: row for row in part["rows"]}
    alive = "all in turns" if part["side_by_side"] else "each in turns with int8 alone"
    lines = [
        f"{name}: {part['layers']} layers, {part['parameters'] / 1e6:.0f} million parameters, {part['tokens']} tokens, "
        f"{part['rounds']} rounds, {alive}, {where(part)}:",
        "",
        "| engine | a forward | this runtime, fp32, is faster | int8 is faster | relative L2 | peak memory "
        "| of diffusers' | loading |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ours, base = rows.get("ours"), rows.get("diffusers")
    for row in part["rows"]:
        if row["refused"] is not None:
            lines.append(_refusal(row, 8))
            continue
        by_int8 = times_faster(row["seconds"], row["anchor_seconds"])
        # Both were paired with int8, so their quotient is too.
        known = ours is not None and ours.get("seconds")
        by_fp32 = by_int8 / times_faster(ours["seconds"], ours["anchor_seconds"]) if known else None  # type: ignore[index]
        error = "-" if row["relative_l2"] is None else f"{row['relative_l2']:.1e}"
        held = base.get("peak_bytes") if base is not None else None
        share = f"{row['peak_bytes'] / held:.2f}" if held else "-"
        cells = [
            _seconds(row),
            _times(by_fp32),
            _times(by_int8),
            error,
            _memory(row),
            share,
            f"{row['load_seconds']:.1f} s",
        ]
        lines.append(f"| {row['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def where(part: Mapping[str, Any]) -> str:
    """The machine of a part."""
    return f"{part['threads']} threads of {part['machine']['cpu']}"


def _refusal(row: Row, columns: int) -> str:
    return f"| {row['label']} | cannot run here: {row['refused']}" + " |" * (columns - 1)


def ratio(slower: Row | None, faster: Row | None) -> str:
    """How many times faster the second is, in words; a dash where one of them was not timed."""
    if slower is None or faster is None or not slower.get("seconds") or not faster.get("seconds"):
        return "-"
    return _times(times_faster(slower["seconds"], faster["seconds"]))


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} times"


def _seconds(row: Row) -> str:
    return f"{statistics.median(row['seconds']):.3g} s"


def _memory(row: Row) -> str:
    return f"{row['peak_bytes'] / 2**20:.0f} MiB"


def _l2(row: Row) -> str:
    return "-" if row["relative_l2"] is None else f"{row['relative_l2']:.1e}"


def _decibels(row: Row) -> str:
    if row["psnr"] is None:
        return "-"
    return "identical" if row["psnr_min"] >= 999 else f"{row['psnr']:.1f} dB, worst {row['psnr_min']:.1f}"


def accuracy(row: Row) -> str:
    """What detectors see in the frames."""
    return " / ".join(f"{row['accuracy'][name]:.0%}" for name in _ATTRIBUTES)
